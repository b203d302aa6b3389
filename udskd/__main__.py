"""`python -m udskd COMMAND` is `udskd COMMAND`. Without a command, it describes the build, for a report of a bug."""

import os
import sys

import udskd
from udskd.cli import entry_point


def main() -> None:
    info = udskd.build_info()
    archs = ", ".join(info["cuda_archs"]) + (f", PTX of {info['cuda_ptx']}" if info["cuda_ptx"] else "")
    print(f"udskd   {info['version']}")
    print(f"PyTorch {info['torch']}")
    print(f"CUDA    {'kernels for ' + archs if info['cuda_compiled'] else 'no kernels in this build'}")
    print(f"SIMD    {', '.join(info['simd_levels']) or 'none'}; in use: {info['simd'] or 'none'} (UDSKD_SIMD chooses)")
    for name, reason in info["backends"].items():
        print(f"backend {name:<10}{'available' if reason is None else 'unavailable: ' + reason}")


if __name__ == "__main__":
    if len(sys.argv) > 1 or "_UDSKD_COMPLETE" in os.environ:  # a shell requests completions without arguments
        sys.exit(entry_point.main())
    main()
