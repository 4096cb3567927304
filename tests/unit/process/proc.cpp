#include "memattach/process/proc.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>

using namespace memattach;

TEST_CASE("stat: a command name of blanks and parentheses") {
    const auto stat = process::parse_stat(
        "42 (a) b (c)) S 7 42 42 0 -1 4194560 100 0 1 0 250 30 0 0 20 0 5 0 987654 1000000 77 "
        "18446744073709551615 1 1 0 0 0");
    REQUIRE(stat);
    CHECK(stat->pid == 42);
    CHECK(stat->comm == "a) b (c)");
    CHECK(stat->state == 'S');
    CHECK(stat->parent_pid == 7);
    CHECK(stat->user_ticks == 250);
    CHECK(stat->system_ticks == 30);
    CHECK(stat->thread_count == 5);
    CHECK(stat->start_ticks == 987654);
    CHECK(stat->rss_pages == 77);
    CHECK_FALSE(stat->is_kernel_thread());
    CHECK_FALSE(stat->is_zombie());
}

TEST_CASE("stat: kernel threads, zombies, garbage") {
    CHECK(process::parse_stat("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0")
              ->is_kernel_thread());
    CHECK(process::parse_stat("9 (x) Z 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0")->is_zombie());
    CHECK_FALSE(process::parse_stat(""));
    CHECK_FALSE(process::parse_stat("9 (x"));
    CHECK_FALSE(process::parse_stat("9 )x( S 1"));
    CHECK_FALSE(process::parse_stat("9 (x) S 1 2 3"));
}

TEST_CASE("status: ids, namespaces, capabilities") {
    const auto status = process::parse_status(
        "Name:\tpython3\nTgid:\t900\nPid:\t905\nPPid:\t1\nTracerPid:\t77\n"
        "Uid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\t8\nNSpid:\t905\t12\t3\n"
        "CapPrm:\t00000000a80425fb\nCapEff:\t0000000000080000\nSeccomp:\t2\n");
    REQUIRE(status);
    CHECK(status->thread_group_id == 900);
    CHECK(status->tracer_pid == 77);
    CHECK(status->real_uid == 1000);
    CHECK(status->effective_uid == 1001);
    CHECK(status->saved_uid == 1002);
    CHECK(status->effective_gid == 6);
    CHECK(status->namespace_tids == std::vector{905, 12, 3});
    CHECK(status->permitted_capabilities == 0xa80425fb);
    CHECK(status->effective_capabilities == 1 << 19);
    CHECK(status->seccomp_mode == 2);
}

TEST_CASE("status: a kernel without pid namespaces; garbage") {
    const auto status = process::parse_status("Tgid:\t4\nPid:\t5\n");
    REQUIRE(status);
    CHECK(status->namespace_tids == std::vector{5});
    CHECK_FALSE(process::parse_status("Name:\tx\n"));
    CHECK_FALSE(process::parse_status(""));
}

TEST_CASE("cmdline") {
    using Words = std::vector<std::string>;
    CHECK(process::parse_cmdline(std::string_view("a\0\0b\0", 5)) == Words{"a", "", "b"});
    CHECK(process::parse_cmdline(std::string_view("title\0\0\0", 8)) == Words{"title"});
    CHECK(process::parse_cmdline("no end") == Words{"no end"});
    CHECK(process::parse_cmdline("").empty());
}

TEST_CASE("a variable of environ") {
    using namespace std::string_literals;
    const std::string text = "PATHS=no\0PATH=/bin:/usr/bin\0EMPTY=\0PATH=second\0=odd\0broken"s;
    CHECK(process::parse_variable(text, "PATH") == "/bin:/usr/bin");
    CHECK(process::parse_variable(text, "EMPTY") == "");
    CHECK_FALSE(process::parse_variable(text, "broken"));
    CHECK_FALSE(process::parse_variable(text, "HOME"));
    CHECK_FALSE(process::parse_variable("", "PATH"));
}

TEST_CASE("schedstat") {
    const auto s = process::parse_schedstat("123456789012 42 7\n");
    REQUIRE(s);
    CHECK(s->on_cpu_ns == 123456789012);
    CHECK(s->waiting_ns == 42);
    CHECK(s->timeslices == 7);
    CHECK_FALSE(process::parse_schedstat("1 2"));
}

TEST_CASE("this very process") {
    const int self = ::getpid();
    CHECK(process::read_stat(self)->parent_pid == ::getppid());
    CHECK(process::read_status(self)->thread_group_id == self);
    const auto threads = process::list_threads(self);
    CHECK(std::find(threads.begin(), threads.end(), self) != threads.end());
    const auto processes = process::list_processes();
    CHECK(std::find(processes.begin(), processes.end(), self) != processes.end());
    const auto here = base::Address(reinterpret_cast<std::uint64_t>(&process::read_maps));
    CHECK(process::find_mapping(process::read_maps(self), here)->executable);
    CHECK(process::same_namespace(self, self, "pid"));
    CHECK(process::age_s(*process::read_stat(self)) >= 0);
    CHECK(process::age_s(*process::read_stat(self)) < 3600);
    CHECK(process::command_line(self).find("unit_process") != std::string::npos);
}

TEST_CASE("a process that isn't there") {
    constexpr int kNobody = 0x7FFFFFFF;
    CHECK_FALSE(process::read_stat(kNobody));
    CHECK_FALSE(process::read_status(kNobody));
    CHECK(process::read_maps(kNobody).empty());
    CHECK(process::list_threads(kNobody).empty());
    CHECK(process::command_line(kNobody).empty());
    CHECK_FALSE(process::namespace_tid(kNobody, kNobody));
    CHECK_FALSE(process::same_namespace(kNobody, kNobody, "pid"));
}
