#include "memattach/process/permission.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cerrno>

using namespace memattach;
using process::Obstacle;

namespace {

constexpr std::uint64_t kPtrace = std::uint64_t{1} << process::kCapSysPtrace;

/// One ordinary user's two processes, which nothing keeps apart.
process::AccessFacts same_user() {
    process::AccessFacts facts;
    facts.pid = 77;
    for (process::Status* s : {&facts.caller, &facts.target}) {
        s->real_uid = s->effective_uid = s->saved_uid = 1000;
        s->real_gid = s->effective_gid = s->saved_gid = 1000;
    }
    facts.proc_owner = 1000;
    facts.error = EPERM;
    return facts;
}

/// The line names the process, what is missing, and is a line.
void check_text(const process::Refusal& refusal, std::string_view names) {
    const std::string text = refusal.text();
    CAPTURE(text);
    CHECK(text.find("77") != std::string::npos);
    CHECK(text.find(names) != std::string::npos);
    CHECK(text.find('\n') == std::string::npos);
}

}  // namespace

TEST_CASE("another user's process") {
    auto facts = same_user();
    facts.target.real_uid = facts.target.effective_uid = facts.target.saved_uid = 0;
    facts.proc_owner = 0;
    const auto refusal = process::explain(facts);
    CHECK(refusal.obstacle == Obstacle::other_user);
    check_text(refusal, "cap_sys_ptrace");
    check_text(refusal, "(uid 0)");
}

TEST_CASE("a set-uid program's process: one of its ids is enough") {
    auto facts = same_user();
    facts.target.saved_uid = 0;
    CHECK(process::explain(facts).obstacle == Obstacle::other_user);
}

TEST_CASE("same user, other group") {
    auto facts = same_user();
    facts.target.effective_gid = 27;
    const auto refusal = process::explain(facts);
    CHECK(refusal.obstacle == Obstacle::other_user);
    check_text(refusal, "group 27");
}

TEST_CASE("root without CAP_SYS_PTRACE is told about containers, not about sudo") {
    auto facts = same_user();
    facts.caller.real_uid = facts.caller.effective_uid = facts.caller.saved_uid = 0;
    const auto refusal = process::explain(facts);
    CHECK(refusal.obstacle == Obstacle::other_user);
    check_text(refusal, "--cap-add SYS_PTRACE");
    CHECK(refusal.text().find("sudo") == std::string::npos);
}

TEST_CASE("a process that isn't dumpable: its files belong to root") {
    auto facts = same_user();
    facts.proc_owner = 0;
    const auto refusal = process::explain(facts);
    CHECK(refusal.obstacle == Obstacle::not_dumpable);
    check_text(refusal, "PR_SET_DUMPABLE");
}

TEST_CASE("a process with more capabilities") {
    auto facts = same_user();
    facts.target.permitted_capabilities = 1 << 10;
    CHECK(process::explain(facts).obstacle == Obstacle::more_capabilities);
}

TEST_CASE("yama") {
    auto facts = same_user();
    facts.yama_scope = 1;
    check_text(process::explain(facts), "sudo sysctl kernel.yama.ptrace_scope=0");
    CHECK(process::explain(facts).obstacle == Obstacle::yama_ancestors);
    facts.is_descendant = true;
    CHECK(process::explain(facts).obstacle == Obstacle::security_module);
    facts.yama_scope = 2;
    CHECK(process::explain(facts).obstacle == Obstacle::yama_admin);
    facts.yama_scope = 3;
    CHECK(process::explain(facts).obstacle == Obstacle::yama_nobody);
    check_text(process::explain(facts), "reboot");
    facts.caller.effective_capabilities = kPtrace;
    CHECK(process::explain(facts).obstacle == Obstacle::yama_nobody);
}

TEST_CASE("user namespaces") {
    auto facts = same_user();
    facts.same_user_namespace = false;
    CHECK(process::explain(facts).obstacle == Obstacle::user_namespace);
    facts.proc_owner = 0;  // then its namespace couldn't even be read
    CHECK(process::explain(facts).obstacle == Obstacle::not_dumpable);
    facts.caller.effective_capabilities = kPtrace;
    CHECK(process::explain(facts).obstacle == Obstacle::user_namespace);
}

TEST_CASE("the caller's own seccomp filter") {
    auto facts = same_user();
    facts.caller.effective_capabilities = kPtrace;
    facts.caller.seccomp_mode = 2;
    CHECK(process::explain(facts).obstacle == Obstacle::seccomp);
    facts = same_user();
    facts.error = ENOSYS;
    CHECK(process::explain(facts).obstacle == Obstacle::seccomp);
}

TEST_CASE("nothing else is left") {
    const auto refusal = process::explain(same_user());
    CHECK(refusal.obstacle == Obstacle::security_module);
    check_text(refusal, "Operation not permitted");
}

TEST_CASE("one's own process can be read; one that is gone is nobody's obstacle") {
    CHECK_FALSE(process::find_obstacle(::getpid()));
    CHECK_FALSE(process::find_obstacle(0x7FFFFFFF));
}
