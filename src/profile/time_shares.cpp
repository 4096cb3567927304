#include "memattach/profile/time_shares.h"

#include <algorithm>
#include <iterator>

namespace memattach::profile {
namespace {

/// A part of the program has at least so many windows and samples.
constexpr std::size_t kLeastWindows = 4, kLeastSamples = 8;
/// As if so many samples had been where the windows were.
constexpr double kAsWindows = 2;
/// A window stands for so many times as much as otherwise, at most, and for as little.
constexpr double kMostTimes = 3, kLeastTimes = 0.25;

/// One window or sample, on its way down the tree.
struct Path {
    std::vector<trace::Frame> frames;  ///< innermost first
    std::size_t window = kSample;      ///< its number

    static constexpr std::size_t kSample = ~std::size_t{0};
    [[nodiscard]] bool is_window() const { return window != kSample; }
    [[nodiscard]] const trace::Frame* at_depth(std::size_t depth) const {
        return depth < frames.size() ? &frames[frames.size() - 1 - depth] : nullptr;
    }
};

using Paths = std::span<Path>;

std::size_t windows_of(Paths paths) {
    return static_cast<std::size_t>(
        std::count_if(paths.begin(), paths.end(), [](const Path& path) { return path.is_window(); }));
}

/// A part: its windows, and the share of the time that it had.
struct Part {
    std::vector<std::size_t> windows;
    double share = 0;
};

/// Cuts the tree of what is in `paths` into parts.
class Splitter {
  public:
    std::vector<Part> split(Paths paths) {
        split(paths, 0, 1);
        return std::move(parts_);
    }

  private:
    static bool before(const trace::Frame* a, const trace::Frame* b) {
        if (a == nullptr || b == nullptr) return a == nullptr && b != nullptr;
        return *a < *b;
    }

    void add_part(Paths paths, double share) {
        Part& part = parts_.emplace_back();
        part.share = share;
        for (const Path& path : paths)
            if (path.is_window()) part.windows.push_back(path.window);
    }

    void split(Paths paths, std::size_t depth, double share) {
        for (;; ++depth) {
            const std::size_t windows = windows_of(paths);
            if (windows < 2 * kLeastWindows || paths.size() - windows < 2 * kLeastSamples) break;
            const trace::Frame* const first = paths.front().at_depth(depth);
            const bool is_one = std::all_of(paths.begin(), paths.end(), [&](const Path& path) {
                const trace::Frame* const frame = path.at_depth(depth);
                return !before(first, frame) && !before(frame, first);
            });
            if (!is_one) {
                std::sort(paths.begin(), paths.end(), [&](const Path& a, const Path& b) {
                    return before(a.at_depth(depth), b.at_depth(depth));
                });
                split_here(paths, depth, share);
                return;
            }
            if (first == nullptr) break;  // they are all the same
        }
        add_part(paths, share);
    }

    /// Sorted by what they are at this depth.
    void split_here(Paths paths, std::size_t depth, double share) {
        std::vector<Paths> parts;
        auto rest = paths.begin();  // what is too little for a part of its own is moved to the front
        for (auto first = paths.begin(); first != paths.end();) {
            const auto last = std::find_if(first, paths.end(), [&](const Path& path) {
                return before(first->at_depth(depth), path.at_depth(depth));
            });
            const Paths some(first, last);
            const std::size_t windows = windows_of(some);
            if (windows < kLeastWindows || some.size() - windows < kLeastSamples) {
                std::rotate(rest, first, last);
                rest += last - first;
                for (Paths& part : parts) part = Paths(part.data() + some.size(), part.size());
            } else {
                parts.push_back(some);
            }
            first = last;
        }
        const Paths others(paths.begin(), rest);
        // Where no window has been the time is everybody's.
        const bool has_others = windows_of(others) > 0;
        const Paths all = has_others ? paths : Paths(rest, paths.end());
        const auto all_windows = static_cast<double>(windows_of(all));
        const double all_samples = static_cast<double>(all.size()) - all_windows;
        const auto share_of = [&](Paths some) {
            const auto windows = static_cast<double>(windows_of(some));
            const double samples = static_cast<double>(some.size()) - windows;
            return share * (samples + kAsWindows * windows / all_windows) / (all_samples + kAsWindows);
        };
        if (has_others) add_part(others, share_of(others));
        for (const Paths& part : parts) split(part, depth + 1, share_of(part));
    }

    std::vector<Part> parts_;
};

}  // namespace

void TimeShares::add(std::uint64_t time_ns, StackId stack) {
    if (++passed_ < every_) return;
    passed_ = 0;
    samples_.push_back({stack, time_ns});
    if (samples_.size() <= kSamples) return;
    if (samples_.front().time_ns < first_window_ns()) {
        samples_.pop_front();
        return;
    }
    every_ *= 2;
    for (std::size_t i = 0; 2 * i < samples_.size(); ++i) samples_[i] = samples_[2 * i];
    samples_.resize(samples_.size() / 2);
}

/// Where there is none yet nothing is too old.
std::uint64_t TimeShares::first_window_ns() const {
    std::uint64_t first_ns = ~std::uint64_t{0};
    for (const std::deque<Place>& windows : windows_)
        if (!windows.empty()) first_ns = std::min(first_ns, windows.front().time_ns);
    return first_ns == ~std::uint64_t{0} ? 0 : first_ns;
}

void TimeShares::spread(const StackTable& stacks, trace::AllocKind kind, std::span<Place> windows) {
    std::deque<Place>& earlier = windows_.at(static_cast<std::size_t>(kind));
    const std::size_t before = earlier.size();
    earlier.insert(earlier.end(), windows.begin(), windows.end());
    std::vector<Path> paths;
    paths.reserve(samples_.size() + earlier.size());
    const auto add_path = [&](StackId stack, std::size_t window) {
        stacks.read(stack, paths.emplace_back().frames);
        paths.back().window = window;
    };
    double all_ns = 0;
    for (std::size_t i = 0; i < earlier.size(); ++i) {
        add_path(earlier[i].stack, i);
        all_ns += earlier[i].span_ns;
    }
    for (const Sample& sample : samples_)
        if (sample.time_ns >= earlier.front().time_ns) add_path(sample.stack, Path::kSample);

    double span_ns = 0;
    double spread_ns = 0;
    for (const Part& part : Splitter().split(paths)) {
        double left_ns = part.share * all_ns;
        double own_ns = 0;
        for (const std::size_t i : part.windows) {
            if (i < before) {
                left_ns -= earlier[i].span_ns;
            } else {
                own_ns += earlier[i].span_ns;
            }
        }
        const double times = own_ns > 0 ? std::clamp(left_ns / own_ns, kLeastTimes, kMostTimes) : 1;
        for (const std::size_t i : part.windows)
            if (i >= before) earlier[i].span_ns *= times;
        span_ns += own_ns;
        spread_ns += own_ns * times;
    }
    for (std::size_t i = 0; i < windows.size(); ++i) {
        if (spread_ns > 0) earlier[before + i].span_ns *= span_ns / spread_ns;
        windows[i].span_ns = earlier[before + i].span_ns;
    }
    while (earlier.size() > kWindows) earlier.pop_front();
}

}  // namespace memattach::profile
