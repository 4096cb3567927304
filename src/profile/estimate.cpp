#include "memattach/profile/estimate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

namespace memattach::profile {
namespace {

/// Of what was looked for in a share f of the time and never seen, there were up to 3 / f with 95 %
/// confidence.
constexpr double kMostUnseen = 3;

}  // namespace

double share_ci95(std::uint64_t hits, std::uint64_t samples) {
    if (samples == 0) return 1;
    const double n = static_cast<double>(samples);
    const double p = static_cast<double>(hits) / n;
    const double z2 = kZ95 * kZ95;
    const double centre = (p + z2 / (2 * n)) / (1 + z2 / n);
    const double half = kZ95 * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n);
    return std::max(centre + half - p, p - (centre - half));
}

double student_t95(double freedom) {
    constexpr std::array<double, 10> kSmall = {12.706, 4.303, 3.182, 2.776, 2.571,
                                               2.447,  2.365, 2.306, 2.262, 2.228};
    if (freedom <= 1) return kSmall[0];
    if (freedom <= 10) {
        const auto below = static_cast<std::size_t>(freedom);
        const double part = freedom - static_cast<double>(below);
        return below == 10 ? kSmall[9] : kSmall[below - 1] * (1 - part) + kSmall[below] * part;
    }
    // Cornish–Fisher expansion in 1/freedom; within 0.001 of the tables from 10 degrees on.
    const double z = kZ95;
    const double z3 = z * z * z;
    const double z5 = z3 * z * z;
    return z + (z3 + z) / (4 * freedom) + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom * freedom);
}

double normal_cdf(double z) {
    return 0.5 * std::erfc(-z / std::sqrt(2.0));
}

void WindowTimes::add(const trace::Window& window) {
    const auto span = static_cast<double>(std::max(window.span_own_ns, window.own_ns));
    span_ns[group_of(window.id)] += span;
    all_span_ns += span;
    spread_ns += span * window.own_spread;
    own_ns += static_cast<double>(window.own_ns);
    if (window.own_ns < window.span_own_ns) ++windows;
}

double WindowTimes::fraction() const {
    return all_span_ns > 0 ? std::clamp(own_ns / all_span_ns, 1e-6, 1.0) : 1;
}

SampleSum& SampleSum::operator=(const SampleSum& other) {
    if (this != &other) {
        SampleSum copy;
        copy += other;
        *this = std::move(copy);
    }
    return *this;
}

void SampleSum::add(double value, double kept, trace::AllocKind kind, std::uint64_t window) {
    value_ += value;
    ++samples_;
    const double variance = value * value * (1 - kept);
    squares_ += window == 0 ? variance : value * value;
    if (window == 0) {
        kept_variance_ += variance;
        Seen& seen = unwindowed_.at(static_cast<std::size_t>(kind));
        seen.bytes += value * kept;
        seen.count += 1;
        return;
    }
    std::unique_ptr<Windowed>& windowed = windowed_.at(static_cast<std::size_t>(kind));
    if (!windowed) windowed = std::make_unique<Windowed>();
    windowed->kept_variance += variance;
    windowed->by_group[group_of(window)] += value;
}

SampleSum& SampleSum::operator+=(const SampleSum& other) {
    value_ += other.value_;
    squares_ += other.squares_;
    kept_variance_ += other.kept_variance_;
    known_variance_ += other.known_variance_;
    samples_ += other.samples_;
    calibrated_ = calibrated_ || other.calibrated_;
    for (std::size_t kind = 0; kind < kAllocKinds; ++kind) {
        unwindowed_[kind].bytes += other.unwindowed_[kind].bytes;
        unwindowed_[kind].count += other.unwindowed_[kind].count;
        if (!other.windowed_[kind]) continue;
        if (!windowed_[kind]) windowed_[kind] = std::make_unique<Windowed>();
        windowed_[kind]->kept_variance += other.windowed_[kind]->kept_variance;
        for (std::size_t g = 0; g < kWindowGroups; ++g) {
            windowed_[kind]->by_group[g] += other.windowed_[kind]->by_group[g];
        }
    }
    return *this;
}

SampleSum SampleSum::without(const SampleSum& part) const {
    SampleSum rest(*this);
    rest.value_ = std::max(0.0, value_ - part.value_);
    rest.squares_ = std::max(0.0, squares_ - part.squares_);
    rest.kept_variance_ = std::max(0.0, kept_variance_ - part.kept_variance_);
    rest.known_variance_ += part.known_variance_;
    rest.samples_ = samples_ - std::min(samples_, part.samples_);
    for (std::size_t kind = 0; kind < kAllocKinds; ++kind) {
        Seen& seen = rest.unwindowed_[kind];
        seen.bytes = std::max(0.0, seen.bytes - part.unwindowed_[kind].bytes);
        seen.count = std::max(0.0, seen.count - part.unwindowed_[kind].count);
        if (!rest.windowed_[kind] || !part.windowed_[kind]) continue;
        double& variance = rest.windowed_[kind]->kept_variance;
        variance = std::max(0.0, variance - part.windowed_[kind]->kept_variance);
        for (std::size_t g = 0; g < kWindowGroups; ++g) {
            rest.windowed_[kind]->by_group[g] -= part.windowed_[kind]->by_group[g];
        }
    }
    return rest;
}

void SampleSum::add_part(const SampleSum& other, double factor) {
    value_ += factor * other.value_;
    for (std::size_t kind = 0; kind < kAllocKinds; ++kind) {
        if (!other.windowed_[kind]) continue;
        if (!windowed_[kind]) windowed_[kind] = std::make_unique<Windowed>();
        for (std::size_t g = 0; g < kWindowGroups; ++g)
            windowed_[kind]->by_group[g] += factor * other.windowed_[kind]->by_group[g];
    }
}

double SampleSum::chance_of_sign() const {
    if (calibrated_) return 1;
    constexpr int kDraws = 2000;
    std::vector<double> groups;
    for (const std::unique_ptr<Windowed>& windowed : windowed_) {
        if (!windowed) continue;
        for (const double sum : windowed->by_group)
            if (sum != 0) groups.push_back(sum);
    }
    std::mt19937 random(1);
    std::normal_distribution<double> rest(0, std::sqrt(std::max(kept_variance_ + known_variance_, 1e-300)));
    int as_large = 0;
    for (int i = 0; i < kDraws; ++i) {
        double sum = rest(random);
        for (const double group : groups) sum += random() % 2 == 0 ? group : -group;
        as_large += sum >= value_ * (1 - 1e-9) ? 1 : 0;
    }
    return (as_large + 1.0) / (kDraws + 1.0);
}

double SampleSum::most_unseen() const {
    return value_ > 0 ? std::min(kMostUnseen * squares_ / value_, value_) : 0;
}

double SampleSum::most_missed(const AllWindowTimes& times) const {
    double bytes = 0;
    for (std::size_t kind = 0; kind < kAllocKinds; ++kind) {
        if (!windowed_[kind]) continue;
        double sum = 0;
        for (const double group : windowed_[kind]->by_group) sum += group;
        bytes += std::max(0.0, sum) * std::min(1.0, kMostUnseen / std::max(times[kind].windows, 1.0));
    }
    return bytes;
}

void SampleSum::scale(double factor) {
    value_ *= factor;
    squares_ *= factor * factor;
    kept_variance_ *= factor * factor;
    known_variance_ *= factor * factor;
    for (Seen& seen : unwindowed_) seen.bytes *= factor;
    for (const std::unique_ptr<Windowed>& windowed : windowed_) {
        if (!windowed) continue;
        windowed->kept_variance *= factor * factor;
        for (double& sum : windowed->by_group) sum *= factor;
    }
}

void SampleSum::calibrate(const SampleSum& whole, double share, double factor, double relative_variance) {
    const double each = whole.value_ > 0 ? value_ / whole.value_ : 0;
    for (std::size_t kind = 0; kind < kAllocKinds; ++kind) {
        if (!whole.windowed_[kind]) continue;
        if (!windowed_[kind]) windowed_[kind] = std::make_unique<Windowed>();
        for (std::size_t g = 0; g < kWindowGroups; ++g)
            windowed_[kind]->by_group[g] -= each * whole.windowed_[kind]->by_group[g];
        windowed_[kind]->kept_variance *= std::max(0.0, 1 - share);
    }
    scale(factor);
    known_variance_ += value_ * value_ * relative_variance;
    calibrated_ = true;
}

double SampleSum::effective_groups() const {
    double sum = 0;
    double squares = 0;
    for (const std::unique_ptr<Windowed>& windowed : windowed_) {
        if (!windowed) continue;
        for (const double group : windowed->by_group) {
            sum += group;
            squares += group * group;
        }
    }
    return squares > 0 ? sum * sum / squares : 0;
}

SampleSum::Uncertainty SampleSum::uncertainty(const AllWindowTimes& times) const {
    Uncertainty result;
    result.samples = samples_;
    result.variance = kept_variance_ + known_variance_;
    double spread_of_variance = 0;  // Σ variance² / freedom, as Satterthwaite adds them up
    for (std::size_t kind = 0; kind < kAllocKinds; ++kind) {
        const Seen& seen = unwindowed_[kind];
        if (!windowed_[kind] && seen.count > 0 && times[kind].all_span_ns > 0) {
            const double missed = kMostUnseen * seen.bytes / seen.count / times[kind].fraction() / kZ95;
            result.variance += (1 - times[kind].fraction()) * missed * missed;
        }
        if (!windowed_[kind]) continue;
        const Windowed& windowed = *windowed_[kind];
        const WindowTimes& time = times[kind];
        double sum = 0;
        double groups = 0;
        double groups_hit = 0;
        for (std::size_t g = 0; g < kWindowGroups; ++g) {
            sum += windowed.by_group[g];
            if (time.span_ns[g] > 0) ++groups;
            if (windowed.by_group[g] != 0) ++groups_hit;
        }
        double between = sum * sum;  // one group says nothing about how they differ
        if (groups > 1) {
            between = 0;
            for (std::size_t g = 0; g < kWindowGroups; ++g) {
                if (!(time.span_ns[g] > 0)) continue;
                const double off = windowed.by_group[g] - sum * time.span_ns[g] / time.all_span_ns;
                between += off * off / time.span_ns[g];
            }
            between *= time.all_span_ns / (groups - 1);
        }
        const double of_windows = (1 - time.fraction()) * std::max(0.0, between - windowed.kept_variance);
        const double of_clock = sum * time.spread();
        result.variance += windowed.kept_variance + of_windows + of_clock * of_clock;
        spread_of_variance += of_windows * of_windows / std::max(1.0, groups_hit - 1);
    }
    if (spread_of_variance > 0) {
        result.freedom = std::max(1.0, result.variance * result.variance / spread_of_variance);
    }
    return result;
}

double SampleSum::Uncertainty::half_width95() const {
    if (!(variance > 0)) return 0;
    // The score interval of a Poisson count is wider than n ± z√n by z²/4 under the root.
    const double few = 1 + kZ95 * kZ95 / (4 * static_cast<double>(std::max<std::uint64_t>(samples, 1)));
    return student_t95(freedom) * std::sqrt(variance * few);
}

}  // namespace memattach::profile
