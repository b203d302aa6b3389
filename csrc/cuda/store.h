// Where a row's logits stay between the visits that a team pays them: in registers, in shared memory, or where they
// were.
//
// kAll: all three networks are there.
//
//   store.load(row, team, maxima)    reads the row, or this block's part of it; each thread's largest logits
//   store.each(f)                    f(c, t, a, b) for this thread's packets, whose first class is c
#pragma once

#include <cstdint>

#include "packet.h"

namespace udskd::cuda {

// A row of each network; null for one that is not there. A row begins `before` classes after memory that is aligned to
// 16 bytes.
template <class E>
struct Row {
  const E *t = nullptr, *a = nullptr, *b = nullptr;
  int classes = 0, before = 0, packets = 0;
  bool t_aligned = false, a_aligned = false, b_aligned = false;  // as the row is

  // As memory that it will be written to is aligned, or that it is read from.
  __device__ void align(const E* like) {
    const auto place = [](const E* x) { return reinterpret_cast<uintptr_t>(x) % 16; };
    before = int(place(like) / sizeof(E)), packets = (before + classes + kCount<E> - 1) / kCount<E>;
    t_aligned = place(t) == place(like), a_aligned = place(a) == place(like), b_aligned = place(b) == place(like);
  }
  // The first class of a packet; beyond the end there is none.
  __device__ int begin(int packet, int end) const { return packet < end ? packet * kCount<E> - before : classes; }
};

template <class E>
struct Three {
  Packet<E> t, a, b;
};

template <bool kOnce, bool kAll, class E>
__device__ Three<E> read_three(const Row<E>& row, int c) {
  Three<E> x = {};
  if (kAll || row.t) x.t = read<kOnce>(row.t, c, row.classes, row.t_aligned);
  x.a = read<kOnce>(row.a, c, row.classes, row.a_aligned);
  if (kAll || row.b) x.b = read<kOnce>(row.b, c, row.classes, row.b_aligned);
  return x;
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
  for (int packet = share.begin + team.rank() % Team::kTeam; packet < share.end; packet += Team::kTeam) {
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
    __device__ Of(unsigned char*, int) {}

    __device__ void load(const Row<E>& row, const Team& team, float (&maxima)[3]) {
      first_ = team.rank() * kCount<E> - row.before, used_ = row.packets;
#pragma unroll
      for (int i = 0; i < kPackets; ++i)
        if (i * Team::kTeam < used_)
          x_[i] = read_three<true, kAll>(row, row.begin(i * Team::kTeam + team.rank(), used_));
#pragma unroll
      for (int i = 0; i < kPackets; ++i)
        if (i * Team::kTeam < used_) largest(x_[i], maxima);
    }

    template <class F>
    __device__ void each(F f) const {
#pragma unroll
      for (int i = 0; i < kPackets; ++i)
        if (i * Team::kTeam < used_) f(first_ + i * Team::kTeam * kCount<E>, x_[i]);
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
    static constexpr bool kKeeps = false;
    __device__ Of(unsigned char* memory, int packets_of_thread)
        : mine_(reinterpret_cast<uint4*>(memory) + threadIdx.x), room_(packets_of_thread) {}

    __device__ void load(const Row<E>& row, const Team& team, float (&maxima)[3]) {
      const Share<E, Team> share(row, team);
      begin_ = share.begin, end_ = share.end, before_ = row.before, classes_ = row.classes;
      used_ = (share.end - share.begin + Team::kBlock - 1) / Team::kBlock;
#pragma unroll 2
      for (int i = 0; i < used_; ++i) {
        const int packet = share.begin + i * Team::kBlock + int(threadIdx.x);
        const Three<E> x = read_three<true, kAll>(row, row.begin(packet, share.end));
        if (kAll || row.t) keep(0, i, x.t);
        keep(1, i, x.a);
        if (kAll || row.b) keep(2, i, x.b);
        largest(x, maxima);
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
        const int packet = begin_ + i * Team::kBlock + int(threadIdx.x);
        f(packet < end_ ? packet * kCount<E> - before_ : classes_, x);  // what follows the end is another block's
      }
    }

   private:
    static constexpr int kWords = sizeof(Packet<E>) / sizeof(uint4);
    uint4* mine_;
    int room_, begin_ = 0, end_ = 0, before_ = 0, classes_ = 0, used_ = 0, absent_ = 0;

    __device__ int place(int network, int i, int word) const {
      return ((network * room_ + i) * kWords + word) * Team::kBlock;
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
    static constexpr bool kKeeps = false;
    __device__ Of(unsigned char*, int) {}

    __device__ void load(const Row<E>& row, const Team& team, float (&maxima)[3]) {
      row_ = row, team_ = &team;
      each([&](int, const Three<E>& x) { largest(x, maxima); });
    }

    template <class F>
    __device__ void each(F f) const {
      const Share<E, Team> share(row_, *team_);
#pragma unroll 1
      for (int packet = share.begin + int(threadIdx.x); packet < share.end; packet += Team::kBlock) {
        const int c = row_.begin(packet, share.end);
        f(c, read_three<false, kAll>(row_, c));
      }
    }

   private:
    Row<E> row_;
    const Team* team_ = nullptr;
  };
};

}  // namespace udskd::cuda
