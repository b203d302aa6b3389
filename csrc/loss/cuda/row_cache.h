// Where a row's logits stay between the visits that a team pays them: in registers, in shared memory, or where they
// were.
//
// kAll: all three networks are there.
//
//   store.load(row, team, maxima)    reads the row, or this block's part of it; each thread's largest logits
//   store.each(f)                    f(c, t, a, b) for this thread's packets, whose first class is c
#pragma once

#include <cstdint>

#include "../../common/cuda/vec16.h"

namespace udskd::cuda {

// A row of each network; null for one that is not there. A row begins `before` classes after memory that is aligned to
// 16 bytes.
template <class E>
struct Row {
  const E *t = nullptr, *a = nullptr, *b = nullptr;
  int classes = 0, before = 0, packets = 0;
  bool aligned = false;  // all networks alike, so that a packet is 16 bytes of each

  // As memory that it will be written to is aligned, or that it is read from.
  __device__ void align(const E* like) {
    const auto place = [](const E* x) { return reinterpret_cast<uintptr_t>(x) % 16; };
    before = int(place(like) / sizeof(E)), packets = (before + classes + kCount<E> - 1) / kCount<E>;
    aligned = (!t || place(t) == place(like)) && place(a) == place(like) && (!b || place(b) == place(like));
  }
  // The first class of a packet; beyond the end there is none.
  __device__ int begin(int packet, int end) const { return packet < end ? packet * kCount<E> - before : classes; }
};

template <class E>
struct Three {
  Packet<E> t, a, b;
};

template <class E>
__device__ bool is_whole(const Row<E>& row, int c) {
  return row.aligned && c >= 0 && c + kCount<E> <= row.classes;
}

// Class by class, of all networks at once: what is beyond the row is kOutside. Not inlined: seldom needed, and often
// called.
template <class E>
__device__ __noinline__ void read_partly(const Row<E>& row, int c, Three<E>& to) {
  float x[3][kCount<E>];
#pragma unroll
  for (int v = 0; v < kCount<E>; ++v) {
    const bool inside = unsigned(c + v) < unsigned(row.classes);
    x[0][v] = inside && row.t ? widened(row.t[c + v]) : kOutside;
    x[1][v] = inside ? widened(row.a[c + v]) : kOutside;
    x[2][v] = inside && row.b ? widened(row.b[c + v]) : kOutside;
  }
  pack(x[0], to.t), pack(x[1], to.a), pack(x[2], to.b);
}

template <class E>
__device__ Three<E> nothing() {
  float x[kCount<E>];
#pragma unroll
  for (int v = 0; v < kCount<E>; ++v) x[v] = kOutside;
  Three<E> three;
  pack(x, three.t), three.a = three.b = three.t;
  return three;
}

// kOnce: nobody will read it again.
template <bool kOnce, bool kAll, class E>
__device__ Three<E> read_whole(const Row<E>& row, int c) {
  Three<E> x = {};
  if (kAll || row.t) x.t = read<kOnce>(row.t + c);
  x.a = read<kOnce>(row.a + c);
  if (kAll || row.b) x.b = read<kOnce>(row.b + c);
  return x;
}

// The packets whose first class is c.
template <bool kOnce, bool kAll, class E>
__device__ Three<E> read_three(const Row<E>& row, int c) {
  if (is_whole(row, c)) return read_whole<kOnce, kAll>(row, c);
  if (c >= row.classes) return nothing<E>();
  Three<E> part;
  read_partly(row, c, part);
  return part;
}

template <class E>
__device__ float largest(const Packet<E>& packet, float than) {
  float x[kCount<E>];
  widen(packet, x);
#pragma unroll
  for (int v = 0; v < kCount<E>; ++v) than = fmaxf(than, x[v]);
  return than;
}

template <class E>
__device__ void largest(const Three<E>& x, float (&maxima)[3]) {
  maxima[0] = largest(x.t, maxima[0]), maxima[1] = largest(x.a, maxima[1]), maxima[2] = largest(x.b, maxima[2]);
}

// This block's packets of a row that parts_ blocks share.
template <class E, class Team>
struct Share {
  int begin, end;
  __device__ Share(const Row<E>& row, const Team& team) {
    const int each = (row.packets + team.parts() - 1) / team.parts();
    begin = min(team.part() * each, row.packets), end = min(begin + each, row.packets);
  }
};

template <class E>
__device__ __noinline__ void read_again(const Row<E>& row, int c, Three<E>& to) {
  to = read_three<false, false>(row, c);
}

// f(c, t, a, b) for this thread's packets, from memory.
template <class E, class Team, class F>
__device__ void each_in_memory(const Row<E>& row, const Team& team, F f) {
  const Share<E, Team> share(row, team);
  Three<E> x;
#pragma unroll 1
  for (int packet = share.begin + team.rank() % Team::kGroupThreads; packet < share.end;
       packet += Team::kGroupThreads) {
    const int c = row.begin(packet, share.end);
    read_again(row, c, x);
    f(c, x);
  }
}

// Up to kPackets packets of each network in each thread.
template <int kPackets>
struct InRegisters {
  template <class E, class Team, bool kAll>
  class Of {
   public:
    // Few numbers to a thread: their exponentials can stay in registers, too.
    static constexpr bool kKeeps = kPackets * kCount<E> <= 8;
    static constexpr bool kUnrolled = true;
    __device__ Of(unsigned char*, int) {}

    __device__ void load(const Row<E>& row, const Team& team, float (&maxima)[3]) {
      first_ = team.rank() * kCount<E> - row.before, used_ = row.packets;
      const auto begin = [&](int i) { return row.begin(i * Team::kGroupThreads + team.rank(), used_); };
#pragma unroll
      for (int i = 0; i < kPackets; ++i)
        x_[i] = is_whole(row, begin(i)) ? read_whole<true, kAll>(row, begin(i)) : nothing<E>();
#pragma unroll
      for (int i = 0; i < kPackets; ++i) {  // while all the others are under way
        if (is_whole(row, begin(i)) || begin(i) >= row.classes) continue;
        Three<E> part;
        read_partly(row, begin(i), part);
        x_[i] = part;
      }
#pragma unroll
      for (int i = 0; i < kPackets; ++i)
        if (i * Team::kGroupThreads < used_) largest(x_[i], maxima);
    }

    template <class F>
    __device__ void each(F f) const {
#pragma unroll
      for (int i = 0; i < kPackets; ++i)
        if (i * Team::kGroupThreads < used_) f(first_ + i * Team::kGroupThreads * kCount<E>, x_[i]);
    }

   private:
    Three<E> x_[kPackets];
    int first_, used_;
  };
};

// Each thread has the packets that it read itself, so that there is nothing to wait for.
struct InShared {
  template <class E, class Team, bool kAll>
  class Of {
   public:
    static constexpr bool kKeeps = false, kUnrolled = false;
    __device__ Of(unsigned char* memory, int packets_of_thread)
        : mine_(reinterpret_cast<uint4*>(memory) + threadIdx.x), room_(packets_of_thread) {}

    __device__ void load(const Row<E>& row, const Team& team, float (&maxima)[3]) {
      const Share<E, Team> share(row, team);
      begin_ = share.begin, end_ = share.end, before_ = row.before, classes_ = row.classes;
      used_ = (share.end - share.begin + Team::kBlockThreads - 1) / Team::kBlockThreads;
      constexpr int kAhead = kWords == 1 ? 4 : 2;  // packets under way before the first is needed
#pragma unroll 1
      for (int first = 0; first < used_; first += kAhead) {
        Three<E> x[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          x[i] = read_three<true, kAll>(row,
                                        row.begin(begin_ + (first + i) * Team::kBlockThreads + int(threadIdx.x), end_));
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          if (first + i < used_) keep(row, first + i, x[i]), largest(x[i], maxima);
      }
      absent_ = (row.t ? 0 : 1) | (row.b ? 0 : 2);
    }

    template <class F>
    __device__ void each(F f) const {
      for (int i = 0; i < used_; ++i) {
        Three<E> x = {};
        if (kAll || !(absent_ & 1)) x.t = kept(0, i);
        x.a = kept(1, i);
        if (kAll || !(absent_ & 2)) x.b = kept(2, i);
        const int packet = begin_ + i * Team::kBlockThreads + int(threadIdx.x);
        f(packet < end_ ? packet * kCount<E> - before_ : classes_, x);  // what follows the end is another block's
      }
    }

   private:
    static constexpr int kWords = sizeof(Packet<E>) / sizeof(uint4);
    uint4* mine_;
    int room_, begin_ = 0, end_ = 0, before_ = 0, classes_ = 0, used_ = 0, absent_ = 0;

    __device__ int place(int network, int i, int word) const {
      return ((network * room_ + i) * kWords + word) * Team::kBlockThreads;
    }
    __device__ void keep(const Row<E>& row, int i, const Three<E>& x) {
      if (kAll || row.t) keep(0, i, x.t);
      keep(1, i, x.a);
      if (kAll || row.b) keep(2, i, x.b);
    }
    __device__ void keep(int network, int i, const Packet<E>& x) {
      for (int word = 0; word < kWords; ++word) mine_[place(network, i, word)] = x.raw[word];
    }
    __device__ Packet<E> kept(int network, int i) const {
      Packet<E> x;
      for (int word = 0; word < kWords; ++word) x.raw[word] = mine_[place(network, i, word)];
      return x;
    }
  };
};

// Read again at each visit, for rows of any length; what fits into the L2 cache comes from there.
struct InMemory {
  template <class E, class Team, bool kAll>
  class Of {
   public:
    static constexpr bool kKeeps = false, kUnrolled = false;
    __device__ Of(unsigned char*, int) {}

    __device__ void load(const Row<E>& row, const Team& team, float (&maxima)[3]) {
      row_ = row, team_ = &team;
      each([&](int, const Three<E>& x) { largest(x, maxima); });
    }

    template <class F>
    __device__ void each(F f) const {
      const Share<E, Team> share(row_, *team_);
      const auto begin = [&](int i) {
        return row_.begin(share.begin + i * Team::kBlockThreads + int(threadIdx.x), share.end);
      };
      Three<E> next = read_three<false, kAll>(row_, begin(0));
#pragma unroll 1
      for (int i = 0; i * Team::kBlockThreads < share.end - share.begin; ++i) {
        const Three<E> x = next;
        next = read_three<false, kAll>(row_, begin(i + 1));  // while this one is computed with
        f(begin(i), x);
      }
    }

   private:
    Row<E> row_;
    const Team* team_ = nullptr;
  };
};

}  // namespace udskd::cuda
