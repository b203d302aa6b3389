// What is done once for a row: the mathematics that all backends share, and the numbers that its gradients are made of.
#pragma once

#include "../../common/cuda/cuda.h"
#include "../row_math.h"
#include "classes.h"

#define HD __device__

namespace udskd::cuda {

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float logarithm1(float x) { return log1pf(x); }
__device__ inline double logarithm1(double x) { return log1p(x); }

#include "generic_math.h"

// `s`: the row's columns as far as they are known. share: the row's of the loss, times grad_output.
__device__ inline RowScales row_scales(const Job& job, int64_t row, int label, const float* s, float share) {
  const Problem& p = job.p;
  const float ce = job.terms.ce ? share * value<float>(p.ce, row) : 0.f;
  const float k = job.scales.k;
  RowScales r;
  r.shift_t = s[kMaxT] * job.scales.teacher_k, r.shift_a = s[kMaxA] * k, r.shift_b = s[kMaxB] * k;
  r.over_t = reciprocal(s[kSumT]), r.over_a = reciprocal(s[kSumA]), r.over_b = reciprocal(s[kSumB]);
  r.over_pa = reciprocal(s[kSumPeerA]), r.over_pb = reciprocal(s[kSumPeerB]);
  r.gap_ta = log2f(s[kSumA] * r.over_t), r.gap_tb = log2f(s[kSumB] * r.over_t);
  r.gap_ab = log2f(s[kSumPeerB] * r.over_pa);
  const float mass = ce * s[kTargetMass];
  r.one_a = mass * reciprocal(s[kSumOneA]), r.one_b = mass * reciprocal(s[kSumOneB]);
  r.target = ce, r.label = label;
  r.kd = job.terms.kd ? share * value<float>(p.kd, row) * s[kWeight] * job.scales.temperature : 0.f;
  r.peer = job.terms.peer ? share * value<float>(p.peer, row) * job.scales.peer_temperature : 0.f;
  return r;
}

}  // namespace udskd::cuda
