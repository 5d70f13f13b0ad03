// Scratch memory that a thread keeps from one call to the next.
//
// The operating system maps fresh memory page by page, at about a microsecond each. Where malloc returns freed memory
// to the system between calls, training at B = 32, H = 256, T = 100 spent a quarter of its backward pass on that (8.9
// instead of 6.5 ms).
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace rnnfast {
namespace RNNFAST_ISA {

// The blocks that a thread holds in reserve, up to kKept bytes in all. They are freed when the thread ends, or by
// rnnfast.release_scratch().
class Reserve {
 public:
  struct Block {
    void* p;
    size_t bytes;
  };

  // The smallest block in reserve that is large enough, else a new one; p is null when there is no memory.
  Block take(size_t bytes) {
    int best = -1;
    for (int i = 0; i < count_; ++i)
      if (blocks_[i].bytes >= bytes && (best < 0 || blocks_[i].bytes < blocks_[best].bytes)) best = i;
    if (best < 0) return allocate(bytes);
    const Block block = blocks_[best];
    blocks_[best] = blocks_[--count_];
    kept_ -= block.bytes;
    return block;
  }

  // Keeps the block, in place of the smallest one where there is no room beside it, or frees it.
  void give_back(Block block) {
    if (count_ < kBlocks && kept_ + block.bytes <= kKept) {
      kept_ += block.bytes;
      blocks_[count_++] = block;
      return;
    }
    int least = 0;
    for (int i = 1; i < count_; ++i)
      if (blocks_[i].bytes < blocks_[least].bytes) least = i;
    if (count_ > 0 && block.bytes > blocks_[least].bytes && kept_ - blocks_[least].bytes + block.bytes <= kKept) {
      kept_ += block.bytes - blocks_[least].bytes;
      const Block smaller = blocks_[least];
      blocks_[least] = block;
      block = smaller;
    }
    release(block);
  }

  static Reserve& of_this_thread() {
    static thread_local Reserve reserve;
    return reserve;
  }

  ~Reserve() { release_all(); }

  void release_all() {
    while (count_ > 0) release(blocks_[--count_]);
    kept_ = 0;
  }

 private:
  static Block allocate(size_t bytes) {
    Block block{nullptr, bytes};
    if (bytes >= kLarge) {
      block.p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (block.p == MAP_FAILED) block.p = nullptr;
    } else if (posix_memalign(&block.p, 64, bytes) != 0) {
      block.p = nullptr;
    }
    return block;
  }
  static void release(Block block) {
    if (block.p && block.bytes >= kLarge)
      munmap(block.p, block.bytes);
    else
      free(block.p);
  }

  // Blocks from this size on are mapped outside malloc's heap. Within it they would lie between the caller's tensors
  // and prevent malloc from joining freed ones: training at B = 32, H = 256, T = 1000 took 73 MiB, and now takes 42 in
  // most runs.
  static constexpr size_t kLarge = 128 << 10;
  // A layer takes up to 9 blocks in a backward pass, and all layers of a pipeline have theirs at the same time.
  static constexpr int kBlocks = 64;
  // With 32 MiB the packed weights of a layer from H = 2900 on were mapped anew in every call.
  static constexpr size_t kKept = size_t(256) << 20;
  Block blocks_[kBlocks];  // the first count_ are kept
  int count_ = 0;
  size_t kept_ = 0;
};

// 64-byte aligned memory for the length of a scope. Converts to false if there is no memory. Nothing is taken for none.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : block_(count > 0 ? Reserve::of_this_thread().take(size_t(count) * sizeof(T)) : Reserve::Block{none(), 0}) {}
  ~Scratch() {
    if (block_.p && block_.bytes) Reserve::of_this_thread().give_back(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return block_.p != nullptr; }
  T* get() const { return static_cast<T*>(block_.p); }

 private:
  static void* none() {
    alignas(64) static char address;
    return &address;
  }

  const Reserve::Block block_;
};

// Up to `most` objects, made one after the other in scratch memory. T has a member `operator new` that takes a place.
template <class T>
class Several {
 public:
  explicit Several(int most) : room_(most) {}
  ~Several() {
    while (count_ > 0) room_.get()[--count_].~T();
  }
  explicit operator bool() const { return bool(room_); }

  template <class... Args>
  T& make(const Args&... args) {
    return *new (room_.get() + count_++) T(args...);
  }
  T& operator[](int i) const { return room_.get()[i]; }
  int size() const { return count_; }

 private:
  const Scratch<T> room_;
  int count_ = 0;
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
