// X3D on a processor: one residual block, and the operators' names; x3d_pixels.h and x3d_stem.h have what comes before.
// Each is called by the Python file of its name.
//
// Operator by operator, a block writes its widened activations six times, and reads them as often: bias, product, ReLU,
// convolution, gate, swish. Here the product writes them, and the convolution, which takes the bias and the ReLU before
// it along, and the swish behind it; where squeeze-and-excitation comes between, it takes the sums along, and gate and
// swish write once more. Sums are kept in float32.
//
// The convolution copies a tile of its input, LANES channels wide and with a border of zeros, to memory that a core's
// caches hold. From there, COLUMNS neighbouring outputs are computed at once while walking along time, so that each
// value read serves up to nine outputs: the frame before, its own and the next. Tiles do not depend on the number of
// threads or clips, so neither do the results.
//
// Letters: B clips, T frames, H x W pixels of the input, h x w of the output, K channels of the input, C of the middle
// (filled up with zeros to a multiple of LANES, which changes nothing), D of the output.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "vectors.h"
#include "x3d_pixels.h"
#include "x3d_stem.h"

namespace {

using at::Tensor;
constexpr int COLUMNS = LANES == 8 ? 2 : 4;  // as many as the registers hold; AVX2 has half of the others' number
constexpr int64_t TILE_BYTES = 128 << 10;

struct Sizes {
  int64_t T, H, W, C, h, w, stride;
};

struct Weights {  // see x3d_block below
  const Tensor &expand, &expand_bias, &taps, &taps_bias;
  at::TensorList squeeze;
  const Tensor &project, &bias;
  const std::optional<Tensor>& shortcut;
};

// N neighbouring outputs of one row, in all frames. `from` is the upper left corner of what the first one sees of the
// first frame; `row` and `frame` lead from one row or frame of the tile to the next. done(t, i, value) takes the i-th.
template <int N, int STRIDE, typename Done>
inline __attribute__((always_inline)) void convolve(const float* from, int64_t row, int64_t frame, int64_t T,
                                                    const float* taps, const Vec& bias, const Done& done) {
  constexpr int SEEN = (N - 1) * STRIDE + 3;
  Vec before[N], here[N], next[N];  // sums of the outputs of the frame before, of this one and of the next
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) here[i] = bias;
#pragma GCC unroll 1
  for (int64_t t = 0; t <= T; ++t, from += frame) {  // the last round only hands over
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) next[i] = bias;
    if (t < T) {
#pragma GCC unroll 1
      for (int r = 0; r < 3; ++r) {
        Vec seen[SEEN];
#pragma GCC unroll 16
        for (int i = 0; i < SEEN; ++i) seen[i] = Vec::loadu(from + r * row + i * LANES);
#pragma GCC unroll 3
        for (int c = 0; c < 3; ++c) {
          const float* tap = taps + (3 * r + c) * LANES;
          const Vec first = Vec::loadu(tap), second = Vec::loadu(tap + 9 * LANES), third = Vec::loadu(tap + 18 * LANES);
#pragma GCC unroll 8
          for (int i = 0; i < N; ++i) {
            next[i] = at::vec::fmadd(seen[i * STRIDE + c], first, next[i]);
            here[i] = at::vec::fmadd(seen[i * STRIDE + c], second, here[i]);
            before[i] = at::vec::fmadd(seen[i * STRIDE + c], third, before[i]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      if (t > 0) done(t - 1, i, before[i]);
      before[i] = here[i];
      here[i] = next[i];
    }
  }
}

template <int N, typename... Rest>
void convolve_some(int64_t count, int64_t stride, const Rest&... rest) {
  if (count == N) {
    stride == 1 ? convolve<N, 1>(rest...) : convolve<N, 2>(rest...);
  } else if constexpr (N > 1) {
    convolve_some<N - 1>(count, stride, rest...);
  }
}

// relu(wide + wide_bias) (T, H, W, C) -> its depthwise 3 x 3 x 3 convolution (T, h, w, C): with swish, or, where `mean`
// (C) is given, without it and with the mean of each channel.
template <typename S>
void depthwise(const S* wide, const float* wide_bias, const float* taps, const float* bias, S* out, float* mean,
               const Sizes& z) {
  const int64_t blocks = z.C / LANES, columns = z.W + 2;
  const int64_t fitting = TILE_BYTES / (z.T * columns * z.stride * LANES * static_cast<int64_t>(sizeof(float)));
  const int64_t tallest = std::clamp<int64_t>(fitting, 1, z.h), tiles = (z.h + tallest - 1) / tallest;
  const int64_t rows = (z.h + tiles - 1) / tiles;
  const int64_t tall = (rows - 1) * z.stride + 3, pieces = (z.w + COLUMNS - 1) / COLUMNS;
  std::vector<float> sums(mean ? tiles * z.C : 0);
  at::parallel_for(0, tiles * blocks, 1, [&](int64_t begin, int64_t end) {
    const Tensor space = at::empty({z.T * tall * columns * LANES}, at::kFloat);  // aligned, as vectors like it
    float* tile = space.mutable_data_ptr<float>();
    std::fill_n(tile, space.numel(), 0.f);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / blocks, c = task % blocks * LANES;
      const int64_t first = z.h * part / tiles, last = z.h * (part + 1) / tiles;  // tiles of about the same height
      const Vec add = Vec::loadu(wide_bias + c), zero(0.f);
      for (int64_t t = 0; t < z.T; ++t) {
        for (int64_t r = 0; r < tall; ++r) {
          const int64_t y = first * z.stride + r - 1;
          float* to = tile + ((t * tall + r) * columns + 1) * LANES;
          if (y < 0 || y >= z.H) {
            std::fill_n(to, z.W * LANES, 0.f);
            continue;
          }
          const S* from = wide + (t * z.H + y) * z.W * z.C + c;
          for (int64_t x = 0; x < z.W; ++x)
            at::vec::maximum(read(from + x * z.C) + add, zero).store(to + x * LANES);
        }
      }
      const Vec shift = Vec::loadu(bias + c);
      Vec sum(0.f);
      for (int64_t piece = 0; piece < pieces; ++piece) {  // of about the same width
        const int64_t x = z.w * piece / pieces, count = z.w * (piece + 1) / pieces - x;
        for (int64_t y = first; y < last; ++y) {
          const float* from = tile + ((y - first) * columns + x) * z.stride * LANES;
          S* to = out + (y * z.w + x) * z.C + c;
          convolve_some<COLUMNS>(count, z.stride, from, columns * LANES, tall * columns * LANES, z.T,
                                 taps + c * 27, shift, [&](int64_t t, int i, const Vec& value) {
                                   if (mean) sum = sum + value;
                                   write(to + (t * z.h * z.w + i) * z.C, mean ? value : swish<S>(value));
                                 });
        }
      }
      if (mean) sum.store(sums.data() + task * LANES);
    }
  });
  if (!mean) return;
  for (int64_t c = 0; c < z.C; ++c) {
    double sum = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) sum += sums[tile * z.C + c];
    mean[c] = sum / (z.T * z.h * z.w);
  }
}

// x (rows, C) -> swish(x * share), in place; share (C)
template <typename S>
void gate(S* x, const float* share, int64_t rows, int64_t C) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / C), [&](int64_t begin, int64_t end) {
    for (S* row = x + begin * C; row < x + end * C; row += C)
      for (int64_t c = 0; c < C; c += LANES) write(row + c, swish<S>(read(row + c) * Vec::loadu(share + c)));
  });
}

// x, other (rows, D), bias (D) -> relu(x + other + bias), in place of x
template <typename S>
void add(S* x, const S* other, const float* bias, int64_t rows, int64_t D) {
  std::vector<float> biases(D + LANES);  // a vector may begin anywhere in a row, and end in the next
  for (int64_t i = 0; i < D + LANES; ++i) biases[i] = bias[i % D];
  const int64_t whole = rows * D / LANES;
  at::parallel_for(0, whole, 4096, [&](int64_t begin, int64_t end) {
    int64_t d = begin * LANES % D;
    for (int64_t i = begin * LANES; i < end * LANES; i += LANES) {
      write(x + i, at::vec::maximum(read(x + i) + read(other + i) + Vec::loadu(biases.data() + d), Vec(0.f)));
      d += LANES;
      while (d >= D) d -= D;
    }
  });
  for (int64_t i = whole * LANES; i < rows * D; ++i) {
    const float sum = static_cast<float>(x[i]) + static_cast<float>(other[i]) + bias[i % D];
    x[i] = sum < 0 ? 0.f : sum;  // not a number stays so, as in a vector
  }
}

// x (T, H, W, K) -> out (T * h * w, D); wide (T * H * W, C) and inner (T * h * w, C) are memory to work in.
template <typename S>
void run_clip(const Tensor& x, const Weights& by, const Sizes& z, Tensor& wide, Tensor& inner, Tensor out) {
  const int64_t K = x.size(-1), rows = out.size(0), D = out.size(1);
  at::mm_out(wide, x.view({-1, K}), by.expand);
  const bool squeezed = !by.squeeze.empty();
  Tensor mean = at::empty({squeezed ? 1 : 0, z.C}, at::kFloat);
  depthwise(wide.const_data_ptr<S>(), by.expand_bias.const_data_ptr<float>(), by.taps.const_data_ptr<float>(),
            by.taps_bias.const_data_ptr<float>(), inner.mutable_data_ptr<S>(),
            squeezed ? mean.mutable_data_ptr<float>() : nullptr, z);
  if (squeezed) {
    const Tensor narrow = at::addmm(by.squeeze[1], mean, by.squeeze[0]).relu_();
    const Tensor share = at::addmm(by.squeeze[3], narrow, by.squeeze[2]).sigmoid_();
    gate(inner.mutable_data_ptr<S>(), share.const_data_ptr<float>(), rows, z.C);
  }
  at::mm_out(out, inner, by.project);
  Tensor other = x;
  if (by.shortcut) {
    const Tensor seen = x.slice(1, 0, z.H, z.stride).slice(2, 0, z.W, z.stride).contiguous();
    other = at::mm(seen.view({-1, K}), *by.shortcut);
  }
  add(out.mutable_data_ptr<S>(), other.const_data_ptr<S>(), by.bias.const_data_ptr<float>(), rows, D);
}

// x (B, T, H, W, K) -> (B, T, h, w, D). Packed weights: expand (K, C), expand_bias (C), taps (C / LANES, 27, LANES),
// taps_bias (C), squeeze: none, or (C, R), (R), (R, C), (C); project (C, D), bias (D), shortcut (K, D) or none. Biases,
// taps and squeeze in float32, the others of x's type. `channels`: of C, those that are not filled up.
Tensor x3d_block(const Tensor& x, const Tensor& expand, const Tensor& expand_bias, const Tensor& taps,
                 const Tensor& taps_bias, at::TensorList squeeze, const Tensor& project, const Tensor& bias,
                 const std::optional<Tensor>& shortcut, int64_t stride, int64_t channels) {
  // Whoever calls has chosen the precision, and asks for no gradients.
  c10::impl::ExcludeDispatchKeyGuard as_given(c10::DispatchKey::AutocastCPU);
  at::AutoDispatchBelowADInplaceOrView no_gradients;
  const Tensor input = x.contiguous();
  const Sizes z{input.size(1), input.size(2), input.size(3), expand.size(1), (input.size(2) - 1) / stride + 1,
                (input.size(3) - 1) / stride + 1, stride};
  TORCH_CHECK(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16,
              "x3d_block: float32 or bfloat16, not ", input.scalar_type());
  TORCH_CHECK(z.C % LANES == 0 && channels <= z.C && (stride == 1 || stride == 2), "x3d_block: weights packed wrongly");
  const Weights by{expand, expand_bias, taps, taps_bias, squeeze, project, bias, shortcut};
  const int64_t rows = z.T * z.h * z.w, D = project.size(1);
  Tensor out = at::empty({input.size(0), z.T, z.h, z.w, D}, input.options());
  Tensor wide = at::empty({z.T * z.H * z.W, z.C}, input.options()), inner = at::empty({rows, z.C}, input.options());
  for (int64_t clip = 0; clip < input.size(0) && out.numel(); ++clip) {  // one by one, while it is in the caches
    const Tensor to = out[clip].view({rows, D});
    const auto run = input.scalar_type() == at::kFloat ? run_clip<float> : run_clip<at::BFloat16>;
    run(input[clip], by, z, wide, inner, to);
  }
  return out;
}

int64_t x3d_lanes() { return LANES; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(video_papr, library) {
  library.def("x3d_lanes() -> int", &x3d_lanes);
  library.def("x3d_pixels(Tensor frames, int t, int h, int w, Tensor scale, Tensor shift) -> Tensor");
  library.def("x3d_stem(Tensor x, Tensor space, Tensor time, Tensor bias, int channels) -> Tensor");
  library.def(
      "x3d_block(Tensor x, Tensor expand, Tensor expand_bias, Tensor taps, Tensor taps_bias, Tensor[] squeeze, "
      "Tensor project, Tensor bias, Tensor? shortcut, int stride, int channels) -> Tensor");
}

TORCH_LIBRARY_IMPL(video_papr, CPU, library) {
  library.impl("x3d_block", &x3d_block);
  library.impl("x3d_pixels", &x3d_pixels);
  library.impl("x3d_stem", &x3d_stem);
}
