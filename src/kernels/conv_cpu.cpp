// Convolution on the CPU, three products over padded images (conv_image.h), none of which needs an im2col matrix:
//   y        rows: output channels,  sum over (c, i, j),   positions: the output           (conv_product.h)
//   dx       rows: input channels,   sum over (o, taps),   positions: every stride-th input (conv_product.h)
//   dweight  rows: output channels,  sum over (n, h, w),   columns: (c, i, j)               (conv_weight.h)
// The inputs that are congruent modulo the stride see the same taps of the kernel: dx is one product for each
// such class, and nothing is scattered. Patches that do not overlap are read, and their dx written, where they lie.
#include "seqkern/conv.h"

#include "conv_weight.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

index_t area(Size2 s) { return s.height * s.width; }
index_t terms(const ConvShape& p) { return p.channels / p.groups * area(p.kernel); }
bool unpadded(const ConvShape& p) { return p.padding.height == 0 && p.padding.width == 0; }

// Every window inside the image, apart from the next, and one piece.
bool is_patches(const ConvShape& p) {
  auto apart = [](index_t k, index_t s, index_t d, index_t in, index_t out) {
    return k <= s && (d == 1 || k == 1) && (out - 1) * s + k <= in;
  };
  return unpadded(p) && apart(p.kernel.height, p.stride.height, p.dilation.height, p.in.height, p.out.height) &&
         apart(p.kernel.width, p.stride.width, p.dilation.width, p.in.width, p.out.width);
}

// Images worth padding at a time: their copy stays in the last-level cache.
index_t images_at_once(index_t batch, index_t elements) {
  return std::clamp<index_t>((index_t(1) << 21) / std::max<index_t>(elements, 1), 1, std::max<index_t>(batch, 1));
}

// One line of a kernel: places of the windows, all padded rows or columns they touch.
index_t reach(index_t out, index_t stride, index_t kernel, index_t dilation) {
  return (out - 1) * stride + (kernel - 1) * dilation + 1;
}

template <class A>
struct PaddedInput {
  PaddedImages<A> images;
  PaddedSource<A> source;

  PaddedInput(Job& job, const ConvShape& p, index_t count)
      : images(reach(p.out.height, p.stride.height, p.kernel.height, p.dilation.height),
               reach(p.out.width, p.stride.width, p.kernel.width, p.dilation.width), p.stride.width) {
    images.take(job, count * p.channels);
    index_t per_group = p.channels / p.groups, *offset = job.take<index_t>(terms(p)), k = 0;
    for (index_t c = 0; c < per_group; ++c)
      for (index_t i = 0; i < p.kernel.height; ++i)
        for (index_t j = 0; j < p.kernel.width; ++j)
          offset[k++] = c * images.plane() + images.place(i * p.dilation.height, j * p.dilation.width);
    source = {images.data, p.channels * images.plane(),    per_group * images.plane(),
              offset,      p.stride.height * images.row(), p.out};
  }
};

template <class T>
Target<T> output(const ConvShape& p, T* y) {
  index_t plane = area(p.out), rows = p.out_channels / p.groups;
  return {y, p.out_channels * plane, rows * plane, plane, p.out.width, 1, nullptr, p.out};
}

template <class T, class W>
void forward(const ConvForward& p) {
  using A = acc_t<T>;
  auto x = static_cast<const T*>(p.x);
  auto weight = static_cast<const W*>(p.weight);
  auto bias = static_cast<const A*>(p.bias);
  auto target = output(p, static_cast<T*>(p.y));
  index_t rows = p.out_channels / p.groups, K = terms(p), image = p.channels * area(p.in), group = image / p.groups;
  if (p.batch * p.out_channels * area(p.out) == 0) return;
  Job job;
  auto block = [&](index_t g, index_t row, int height, index_t k, index_t depth, A* out) {
    pack_rows(weight + (g * rows + row) * K + k, K, height, depth, out);
  };
  if (is_patches(p) && area(p.kernel) == 1 && area(p.stride) == 1) {
    ConvProduct<T, PlaneSource<T>> product{p.groups, rows, K, {x, image, group, area(p.in)}, target, bias};
    product.pack(job, block);
    return product.run(job, p.batch);
  }
  if (is_patches(p) && p.kernel.width >= kLanes<A>) {
    PatchSource<T> source{x, image, group, p.in, p.kernel, p.stride, p.out};
    ConvProduct<T, PatchSource<T>> product{p.groups, rows, K, source, target, bias};
    product.pack(job, block);
    return product.run(job, p.batch);
  }
  index_t count = images_at_once(p.batch, image);
  PaddedInput<A> input(job, p, count);
  ConvProduct<T, PaddedSource<A>> product{p.groups, rows, K, input.source, target, bias, rows <= kDirectRows};
  product.pack(job, block);
  for (index_t n = 0; n < p.batch; n += count) {
    index_t here = std::min(count, p.batch - n);
    input.images.fill(job, x + n * image, here * p.channels, p.in, p.padding);
    product.run(job, here);
    product.target.data += here * target.image;
  }
}

// dx of patches: every input is in one patch, or in none and gets 0.
template <class T, class W>
void patches_dx(Job& job, const ConvBackward& p) {
  using A = acc_t<T>;
  auto dx = static_cast<T*>(p.dx);
  auto weight = static_cast<const W*>(p.weight);
  index_t plane = area(p.in), positions = area(p.out), K = terms(p), depth = p.out_channels / p.groups;
  auto clear = [&](int rank, int threads, Barrier&) {
    Range own = share(p.batch * p.channels * plane, rank, threads);
    std::fill(dx + own.begin, dx + own.end, T{});
  };
  job.run(threads_for(double(p.batch * p.channels) * double(plane), 1.0e6), clear);
  index_t *row_at = job.take<index_t>(K), m = 0;
  for (index_t c = 0; c < p.channels / p.groups; ++c)
    for (index_t i = 0; i < p.kernel.height; ++i)
      for (index_t j = 0; j < p.kernel.width; ++j) row_at[m++] = c * plane + i * p.in.width + j;
  Target<T> target{
      dx,   p.channels * plane, p.channels / p.groups * plane, 0, p.stride.height * p.in.width, p.stride.width, row_at,
      p.out};
  PlaneSource<T> source{static_cast<const T*>(p.dy), p.out_channels * positions, depth * positions, positions};
  ConvProduct<T, PlaneSource<T>> product{p.groups, K, depth, source, target};
  product.pack(job, [&](index_t g, index_t row, int height, index_t k, index_t d, A* out) {
    pack_left(Matrix<W>{weight + g * depth * K, 1, K}, row, height, k, d, out);
  });
  product.run(job, p.batch);
}

// Inputs first, first + stride, ... along one dimension are congruent modulo the stride, padding included, to
// `phase`. The q-th of them sees tap i of the kernel at output begin + q - shift(i), if phase = i * dilation.
struct Phase {
  index_t first, stride, dilation, phase, begin, count;

  Phase(index_t first_, index_t in, index_t stride_, index_t padding, index_t dilation_)
      : first(first_),
        stride(stride_),
        dilation(dilation_),
        phase((first + padding) % stride),
        begin((first + padding) / stride),
        count(ceil_div(in - first, stride)) {}

  bool sees(index_t tap) const { return tap * dilation % stride == phase; }
  index_t shift(index_t tap) const { return (tap * dilation - phase) / stride; }
};

// What the classes of one dimension need of dy: zeros before the first output, and outputs in all.
struct Margin {
  index_t before, size;
  Margin(index_t in, index_t kernel, index_t stride, index_t padding, index_t dilation)
      : before((kernel - 1) * dilation / stride), size(before + (in - 1 + padding) / stride + 1) {}
};

template <class T, class W>
class InputGradient {
  using A = acc_t<T>;

 public:
  InputGradient(Job& job, const ConvBackward& p_)
      : p(p_),
        rows(p.channels / p.groups),
        outs(p.out_channels / p.groups),
        tall(p.in.height, p.kernel.height, p.stride.height, p.padding.height, p.dilation.height),
        wide(p.in.width, p.kernel.width, p.stride.width, p.padding.width, p.dilation.width),
        images(tall.size, wide.size),
        count(images_at_once(p.batch, p.out_channels * images.plane())) {
    images.take(job, count * p.out_channels);
    index_t down = std::min(p.stride.height, p.in.height), across = std::min(p.stride.width, p.in.width);
    classes = down * across;
    products = job.take<Product>(classes);
    for (index_t i = 0; i < classes; ++i)
      products[i] = product(job, {i / across, p.in.height, p.stride.height, p.padding.height, p.dilation.height},
                            {i % across, p.in.width, p.stride.width, p.padding.width, p.dilation.width});
  }

  void run(Job& job) {
    auto dy = static_cast<const T*>(p.dy);
    for (index_t n = 0; n < p.batch; n += count) {
      index_t here = std::min(count, p.batch - n);
      images.fill(job, dy + n * p.out_channels * area(p.out), here * p.out_channels, p.out, {tall.before, wide.before});
      for (index_t i = 0; i < classes; ++i) {
        products[i].run(job, here);
        products[i].target.data += here * products[i].target.image;
      }
    }
  }

 private:
  using Product = ConvProduct<T, PaddedSource<A>>;

  Product product(Job& job, Phase v, Phase h) const {
    index_t taps = 0, *tap = job.take<index_t>(area(p.kernel)), *shift = job.take<index_t>(area(p.kernel));
    for (index_t i = 0; i < p.kernel.height; ++i)
      for (index_t j = 0; j < p.kernel.width; ++j)
        if (v.sees(i) && h.sees(j)) {
          tap[taps] = i * p.kernel.width + j;
          shift[taps++] = images.place(tall.before + v.begin - v.shift(i), wide.before + h.begin - h.shift(j));
        }
    index_t* offset = job.take<index_t>(outs * taps);
    for (index_t o = 0; o < outs; ++o)
      for (index_t t = 0; t < taps; ++t) offset[o * taps + t] = o * images.plane() + shift[t];
    Size2 grid{v.count, h.count};
    index_t plane = area(p.in);
    PaddedSource<A> source{images.data, p.out_channels * images.plane(), outs * images.plane(), offset, images.row(),
                           grid};
    Target<T> target{static_cast<T*>(p.dx) + v.first * p.in.width + h.first,
                     p.channels * plane,
                     rows * plane,
                     plane,
                     p.stride.height * p.in.width,
                     p.stride.width,
                     nullptr,
                     grid};
    Product result{p.groups, rows, outs * taps, source, target, nullptr, rows <= kDirectRows};
    auto weight = static_cast<const W*>(p.weight);
    index_t K = terms(p), kernel = area(p.kernel);
    result.pack(job, [&](index_t g, index_t row, int height, index_t k, index_t depth, A* out) {
      for (index_t i = k; i < k + depth; ++i, out += height) {
        const W* from = weight + (g * outs + i / taps) * K + row * kernel + tap[i % taps];
        for (int m = 0; m < height; ++m) out[m] = from_storage(from[m * kernel]);
      }
    });
    return result;
  }

  const ConvBackward& p;
  index_t rows, outs;  // channels of a group, in and out
  Margin tall, wide;
  PaddedImages<A> images;      // dy
  index_t count, classes = 0;  // images at once
  Product* products = nullptr;
};

template <class T>
void weight_gradient(Job& job, const ConvBackward& p) {
  using A = acc_t<T>;
  auto x = static_cast<const T*>(p.x);
  auto dy = static_cast<const T*>(p.dy);
  auto dweight = static_cast<A*>(p.dweight);
  if (p.batch * area(p.out) == 0) {
    std::fill(dweight, dweight + p.out_channels * terms(p), A{});
    return;
  }
  index_t image = p.channels * area(p.in), count = images_at_once(p.batch, image);
  PaddedInput<A> input(job, p, count);
  ConvWeightGradient<T> gradient{p.groups, p.out_channels / p.groups, terms(p), input.source, dweight};
  gradient.take(job);
  for (index_t n = 0; n < p.batch; n += count) {
    index_t here = std::min(count, p.batch - n);
    input.images.fill(job, x + n * image, here * p.channels, p.in, p.padding);
    gradient.run(job, dy + n * p.out_channels * area(p.out), here, n > 0);
  }
}

template <class T>
void bias_gradient(Job& job, const ConvBackward& p) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  index_t plane = area(p.out);
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(p.out_channels, rank, threads);
    for (index_t o = own.begin; o < own.end; ++o) {
      Vec<A> sum[2] = {};
      for (index_t n = 0; n < p.batch; ++n) {
        const T* dy = static_cast<const T*>(p.dy) + (n * p.out_channels + o) * plane;
        index_t q = 0;
        for (; q + 2 * L <= plane; q += 2 * L) sum[0] = sum[0] + load(dy + q), sum[1] = sum[1] + load(dy + q + L);
        for (; q < plane; q += L) sum[0] = sum[0] + load_n(dy + q, int(std::min<index_t>(L, plane - q)));
      }
      static_cast<A*>(p.dbias)[o] = sum_lanes(sum[0] + sum[1]);
    }
  };
  job.run(threads_for(double(p.batch * p.out_channels) * double(plane), 1.0e5), body);
}

template <class T, class W>
void backward(const ConvBackward& p) {
  Job job;
  if (p.dx && p.batch * p.channels * area(p.in) > 0) {
    if (is_patches(p)) patches_dx<T, W>(job, p);
    else InputGradient<T, W>(job, p).run(job);
  }
  if (p.dweight && p.out_channels * terms(p) > 0) weight_gradient<T>(job, p);
  if (p.dbias) bias_gradient<T>(job, p);
}

}  // namespace

void conv_forward(const ConvForward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { forward<T, W>(p); });
}
void conv_backward(const ConvBackward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { backward<T, W>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
