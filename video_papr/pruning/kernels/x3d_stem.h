// The stem of X3D on a processor: a 1 x 3 x 3 convolution of stride 2 over three colours, a depthwise 5 x 1 x 1 one, a
// ReLU. Row by row of the output: the first convolution of the row in all frames, kept in float32 in a core's caches,
// and the second one from there.
//
// Letters: B clips, T frames, H x W pixels of the input, h x w of the output, C channels, filled up with zeros to P, a
// multiple of LANES.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int STEM_COLUMNS = 8;  // outputs side by side, each in a register
constexpr int STEM_FRAMES = 5;   // that the second convolution sees

// Row `y` of one frame (H, W, 3) -> float32 (W + 2, 3), zeros left and right, and everywhere beyond the frame.
template <typename S>
void padded_row(const S* frame, int64_t y, int64_t H, int64_t W, float* to) {
  if (y < 0 || y >= H) {
    std::fill_n(to, (W + 2) * 3, 0.f);
    return;
  }
  std::fill_n(to, 3, 0.f);
  std::copy_n(frame + y * W * 3, W * 3, to + 3);
  std::fill_n(to + (W + 1) * 3, 3, 0.f);
}

// N neighbouring outputs of LANES channels, from three rows of `row` values each, the first of which begins at `from`.
template <int N>
void convolve_colors(const float* from, int64_t row, const float* taps, int64_t P, float* to) {
  Vec sums[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) sums[i] = Vec(0.f);
  for (int r = 0; r < 3; ++r) {
    for (int v = 0; v < 9; ++v) {  // three columns of three colours
      const Vec tap = Vec::loadu(taps + (r * 9 + v) * P);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) sums[i] = at::vec::fmadd(Vec(from[r * row + i * 6 + v]), tap, sums[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) sums[i].store(to + i * P);
}

// LANES channels of one place: rows (T, step) -> their convolution over time, in out (T, out_step), `count` of them.
template <typename S>
void convolve_time(const float* rows, int64_t step, int64_t T, const float* taps, int64_t P, const Vec& bias, S* out,
                   int64_t out_step, int64_t count) {
  for (int64_t t = 0; t < T; ++t) {
    Vec sum = bias;
    for (int64_t k = std::max<int64_t>(0, 2 - t); k < std::min<int64_t>(STEM_FRAMES, T + 2 - t); ++k)
      sum = at::vec::fmadd(Vec::loadu(rows + (t + k - 2) * step), Vec::loadu(taps + k * P), sum);
    sum = at::vec::maximum(sum, Vec(0.f));
    S* to = out + t * out_step;
    if (count == LANES) {
      write(to, sum);
    } else {
      S whole[LANES];
      write(whole, sum);
      std::memcpy(to, whole, count * sizeof(S));
    }
  }
}

// Arguments as of x3d_stem; x is contiguous.
template <typename S>
void run_stem(const at::Tensor& x, const at::Tensor& space, const at::Tensor& time, const at::Tensor& bias,
              at::Tensor& out) {
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), W = x.size(3), P = bias.size(0);
  const int64_t h = out.size(2), w = out.size(3), C = out.size(4), row = (W + 2) * 3;
  const S* from = x.const_data_ptr<S>();
  const float *space_taps = space.const_data_ptr<float>(), *time_taps = time.const_data_ptr<float>();
  const float* shift = bias.const_data_ptr<float>();
  S* to = out.mutable_data_ptr<S>();
  at::parallel_for(0, B * h, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor seen_space = at::empty({3 * row}, at::kFloat), sums_space = at::empty({T * w * P}, at::kFloat);
    float *seen = seen_space.mutable_data_ptr<float>(), *sums = sums_space.mutable_data_ptr<float>();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t clip = task / h, y = task % h;
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t r = 0; r < 3; ++r)
          padded_row(from + (clip * T + t) * H * W * 3, 2 * y + r - 1, H, W, seen + r * row);
        for (int64_t c = 0; c < P; c += LANES) {
          float* line = sums + t * w * P + c;
          int64_t i = 0;
          for (; i + STEM_COLUMNS <= w; i += STEM_COLUMNS)
            convolve_colors<STEM_COLUMNS>(seen + i * 6, row, space_taps + c, P, line + i * P);
          for (; i < w; ++i) convolve_colors<1>(seen + i * 6, row, space_taps + c, P, line + i * P);
        }
      }
      for (int64_t i = 0; i < w; ++i)
        for (int64_t c = 0; c < P; c += LANES)
          convolve_time(sums + i * P + c, w * P, T, time_taps + c, P, Vec::loadu(shift + c),
                        to + ((clip * T * h + y) * w + i) * C + c, h * w * C, std::min(LANES, C - c));
    }
  });
}

// x (B, T, H, W, 3) -> (B, T, h, w, C) of the same type, float32 or bfloat16. Weights in float32: space (3, 3, 3, P) by
// row, column and colour, time (5, P), bias (P).
at::Tensor x3d_stem(const at::Tensor& x, const at::Tensor& space, const at::Tensor& time, const at::Tensor& bias,
                    int64_t channels) {
  const at::Tensor input = x.contiguous();
  const int64_t P = bias.size(0), h = (input.size(2) - 1) / 2 + 1, w = (input.size(3) - 1) / 2 + 1;
  TORCH_CHECK(input.size(4) == 3 && P % LANES == 0 && channels <= P && P - channels < LANES, "x3d_stem: sizes");
  TORCH_CHECK(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16,
              "x3d_stem: float32 or bfloat16, not ", input.scalar_type());
  at::Tensor out = at::empty({input.size(0), input.size(1), h, w, channels}, input.options());
  const auto run = input.scalar_type() == at::kFloat ? run_stem<float> : run_stem<at::BFloat16>;
  run(input, space, time, bias, out);
  return out;
}

}  // namespace
