#include "shards/reader.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "cpu/bitmask.h"

namespace fasttransfer::shards {
namespace {

constexpr int64_t kElementsAtOnce =
    65536;  // that a thread takes at once: few enough to share a batch, many enough to outweigh the locking

}  // namespace

Job::Job(int64_t items, int64_t at_once, std::function<void(int64_t)> item)
    : items_(items), at_once_(at_once), item_(std::move(item)) {}

bool Job::work() {
  const int64_t begin = next_.fetch_add(at_once_);
  if (begin >= items_) return false;
  const int64_t end = std::min(items_, begin + at_once_);
  std::exception_ptr failure;
  try {
    for (int64_t i = begin; i < end; ++i) item_(i);
  } catch (...) {
    failure = std::current_exception();
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  done_ += end - begin;
  if (failure && !failure_) {
    failure_ = failure;
    // Items that no thread has taken count as done.
    const int64_t taken = std::min(items_, next_.exchange(items_));
    done_ += items_ - taken;
  }
  if (done_ == items_) ended_.notify_all();
  return true;
}

void Job::wait() {
  while (work()) {
  }
  std::unique_lock<std::mutex> lock(mutex_);
  ended_.wait(lock, [&] { return done_ == items_; });
  if (failure_) std::rethrow_exception(failure_);
}

void Job::abandon() {
  std::unique_lock<std::mutex> lock(mutex_);
  const int64_t taken = std::min(items_, next_.exchange(items_));
  done_ += items_ - taken;
  ended_.wait(lock, [&] { return done_ == items_; });
}

Reader::Reader(const std::vector<std::string>& paths, const std::string& entry, int64_t elements, int threads)
    : elements_(elements) {
  for (size_t i = 0; i < paths.size(); ++i) {
    const auto first = static_cast<uint64_t>(starts_.back());
    files_.push_back(std::make_unique<File>(paths[i], Identity{entry, static_cast<uint32_t>(i), first, elements}));
    starts_.push_back(starts_.back() + files_.back()->records());
  }
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

Reader::~Reader() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  more_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

int64_t Reader::bytes() const {
  int64_t bytes = 0;
  for (const auto& file : files_) bytes += file->bytes();
  return bytes;
}

bool Reader::is_packed() const {
  return std::all_of(files_.begin(), files_.end(), [](const auto& file) { return file->is_packed(); });
}

Reader::Found Reader::find(int64_t row) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), row);
  const auto file = after - starts_.begin() - 1;
  return {files_[file].get(), row - starts_[file]};
}

void Reader::check(const std::vector<int64_t>& rows) const {
  for (const int64_t row : rows) {
    if (row < 0 || row >= records()) {
      throw std::out_of_range("record " + std::to_string(row) + " is asked for, there are " +
                              std::to_string(records()));
    }
  }
}

void Reader::offsets(const std::vector<int64_t>& rows, int64_t* to) const {
  check(rows);
  to[0] = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Found found = find(rows[i]);
    to[i + 1] = to[i] + found.file->values(found.record);
  }
}

std::shared_ptr<Job> Reader::read_dense(std::vector<int64_t> rows, uint16_t* to) {
  check(rows);
  const auto items = static_cast<int64_t>(rows.size());
  return begin(items, [this, rows = std::move(rows), to](int64_t i) {
    const Found found = find(rows[i]);
    found.file->read_dense(found.record, to + i * elements_);
  });
}

std::shared_ptr<Job> Reader::read_packed(std::vector<int64_t> rows, uint8_t* masks, const int64_t* places,
                                         uint16_t* to) {
  check(rows);
  const auto items = static_cast<int64_t>(rows.size());
  std::vector<int64_t> at(places, places + items);
  return begin(items, [this, rows = std::move(rows), at = std::move(at), masks, to](int64_t i) {
    const Found found = find(rows[i]);
    found.file->read_packed(found.record, masks + i * mask_bytes(elements_), to + at[i]);
  });
}

std::shared_ptr<Job> Reader::begin(int64_t items, std::function<void(int64_t)> item) {
  const int64_t at_once = std::max<int64_t>(1, kElementsAtOnce / std::max<int64_t>(1, elements_));
  auto job = std::make_shared<Job>(items, at_once, std::move(item));
  if (items > 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(job);
    }
    more_.notify_all();
  }
  return job;
}

void Reader::work() {
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      more_.wait(lock, [&] { return closing_ || !jobs_.empty(); });
      if (closing_) return;
      job = jobs_.front();
    }
    if (job->work()) continue;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!jobs_.empty() && jobs_.front() == job) jobs_.pop_front();
  }
}

}  // namespace fasttransfer::shards
