// Vectors of float32, read from and written to memory of float32 or bfloat16; torch's classes, and what they lack.

#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t LANES = Vec::size();

template <typename S>
Vec read(const S* from) {
  if constexpr (std::is_same_v<S, float>) {
    return Vec::loadu(from);
  } else {
    Vec value;
    at::vec::load_to_float<S>(from, value);
    return value;
  }
}

template <typename S>
void write(S* to, const Vec& value) {
  if constexpr (std::is_same_v<S, float>) {
    value.store(to);
  } else {
#ifdef __AVX512BF16__  // one instruction, which torch's classes do in ten
    const __m256bh rounded = _mm512_cvtneps_pbh(value);
    std::memcpy(to, &rounded, sizeof rounded);
#else  // one vector holds twice as many short numbers; the first half counts
    S both[2 * LANES];
    at::vec::convert_from_float<S>(value, value).store(both);
    std::memcpy(to, both, LANES * sizeof(S));
#endif
  }
}

// e to the power x, to 4e-7 of it; where the result is rounded to 4e-3 anyway, to 1.2e-4, if torch has it.
template <typename S, typename V>
V exponential(const V& x) {
  if constexpr (!std::is_same_v<S, float> && requires { x.fexp_u20(); }) {
    return x.fexp_u20();
  } else {
    return x.exp_u20();
  }
}

template <typename S>
Vec swish(const Vec& x) {
  return x / (Vec(1.f) + exponential<S>(x.neg()));
}

}  // namespace
