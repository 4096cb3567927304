#include "memattach/probe/native_unwind.h"

#include <cxxabi.h>
#include <elfutils/libdwfl.h>
#include <gelf.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "memattach/base/clock.h"
#include "memattach/process/maps.h"
#include "memattach/process/proc.h"
#include "memattach/process/target_file.h"

namespace memattach::probe {
namespace {

constexpr std::uint64_t kMapsAgeNs = 500'000'000;
constexpr std::size_t kMaxVdsoBytes = 64 << 10;

std::string demangle(const char* name) {
    if (std::strncmp(name, "_Z", 2) != 0 || std::strlen(name) > 1000) return name;
    int status = 0;
    const std::unique_ptr<char, decltype(&std::free)> text(
        abi::__cxa_demangle(name, nullptr, nullptr, &status), &std::free);
    return status == 0 && text ? std::string(text.get()) : std::string(name);
}

}  // namespace

struct NativeUnwinder::Impl {
    Impl(int pid_, const process::Memory& memory_) : pid(pid_), memory(memory_) {}
    ~Impl() {
        if (dwfl != nullptr) ::dwfl_end(dwfl);
    }

    int pid;
    const process::Memory& memory;
    Dwfl* dwfl = nullptr;
    bool attached = false;
    std::uint64_t reported_ns = 0;
    /// By start address of a module: the mapping whose file is to be opened, asked for by find_elf.
    std::map<std::uint64_t, process::Mapping> modules;
    std::vector<std::byte> vdso;

    // What is being unwound.
    const std::array<std::uint64_t, kPerfRegisterCount>* registers = nullptr;
    std::span<const std::byte> stack;
    std::vector<base::Address>* out = nullptr;

    void report_modules();
    bool prepare(base::Address ip);
    bool read_word(Dwarf_Addr address, Dwarf_Word* result);

    static int find_elf(Dwfl_Module* module, void** userdata, const char* name, Dwarf_Addr base, char** file,
                        Elf** elf);
    static int find_debuginfo(Dwfl_Module*, void**, const char*, Dwarf_Addr, const char*, const char*,
                              GElf_Word, char**) {
        return -1;  // Symbols and unwind tables of the file itself will do; nothing is searched or
                    // downloaded.
    }
    static pid_t next_thread(Dwfl*, void* argument, void** thread_argument) {
        if (*thread_argument != nullptr) return 0;
        *thread_argument = argument;
        return static_cast<Impl*>(argument)->pid;
    }
    static bool get_thread(Dwfl*, pid_t, void* argument, void** thread_argument) {
        *thread_argument = argument;
        return true;
    }
    static bool read_memory(Dwfl*, Dwarf_Addr address, Dwarf_Word* result, void* argument) {
        return static_cast<Impl*>(argument)->read_word(address, result);
    }
    static bool set_registers(Dwfl_Thread* thread, void* argument);
    static int take_frame(Dwfl_Frame* frame, void* argument);
};

namespace {

/// libdwfl's callbacks get no argument of ours where modules are reported; the module's userdata starts out
/// empty. Unwinders are used by one thread at a time.
thread_local void* reporting = nullptr;

}  // namespace

int NativeUnwinder::Impl::find_elf(Dwfl_Module*, void**, const char*, Dwarf_Addr base, char** file,
                                   Elf** elf) {
    *file = nullptr;
    *elf = nullptr;
    auto* impl = static_cast<Impl*>(reporting);
    if (impl == nullptr) return -1;
    const auto found = impl->modules.find(base);
    if (found == impl->modules.end()) return -1;
    const process::Mapping& mapping = found->second;
    if (mapping.path == "[vdso]") {
        if (mapping.size_bytes() > kMaxVdsoBytes) return -1;
        impl->vdso.resize(static_cast<std::size_t>(mapping.size_bytes()));
        if (!impl->memory.read_exactly(mapping.start, impl->vdso)) return -1;
        *elf = ::elf_memory(reinterpret_cast<char*>(impl->vdso.data()), impl->vdso.size());
        return -1;
    }
    return process::open_mapped_file(impl->pid, mapping).fd.release();
}

void NativeUnwinder::Impl::report_modules() {
    reported_ns = base::monotonic_ns();
    static const Dwfl_Callbacks kCallbacks = {&Impl::find_elf, &Impl::find_debuginfo,
                                              &::dwfl_offline_section_address, nullptr};
    if (dwfl == nullptr) dwfl = ::dwfl_begin(&kCallbacks);
    if (dwfl == nullptr) return;
    const std::vector<process::Mapping> maps = process::read_maps(pid);
    ::dwfl_report_begin_add(dwfl);
    for (std::size_t i = 0; i < maps.size();) {
        // One module is a run of mappings of one file (with the anonymous ones of its .bss in between left
        // out).
        std::size_t last = i;
        for (std::size_t j = i + 1; j < maps.size() && j < i + 16; ++j)
            if (maps[j].same_file(maps[i])) last = j;
        bool executable = false;
        for (std::size_t j = i; j <= last; ++j) executable |= maps[j].executable;
        if (executable && (maps[i].inode != 0 || maps[i].path == "[vdso]") &&
            !modules.contains(maps[i].start.value())) {
            modules.emplace(maps[i].start.value(), maps[i]);
            ::dwfl_report_module(dwfl, maps[i].path.c_str(), maps[i].start.value(), maps[last].end.value());
        }
        i = last + 1;
    }
    ::dwfl_report_end(dwfl, nullptr, nullptr);
}

bool NativeUnwinder::Impl::prepare(base::Address ip) {
    reporting = this;
    const bool known = dwfl != nullptr && ::dwfl_addrmodule(dwfl, ip.value()) != nullptr;
    if (!known && (reported_ns == 0 || base::monotonic_ns() - reported_ns > kMapsAgeNs)) report_modules();
    if (dwfl == nullptr) return false;
    if (!attached) {
        static const Dwfl_Thread_Callbacks kThreads = {
            &Impl::next_thread,   &Impl::get_thread, &Impl::read_memory,
            &Impl::set_registers, nullptr,           nullptr};
        attached = ::dwfl_attach_state(dwfl, nullptr, pid, &kThreads, this);
    }
    return attached;
}

bool NativeUnwinder::Impl::read_word(Dwarf_Addr address, Dwarf_Word* result) {
    const std::uint64_t sp = (*registers)[kPerfRegisterSp];
    std::uint64_t value = 0;
    if (address >= sp && address - sp < stack.size() && stack.size() - (address - sp) >= sizeof(value)) {
        std::memcpy(&value, stack.data() + (address - sp), sizeof(value));
    } else {
        const auto read = memory.read<std::uint64_t>(base::Address(address));
        if (!read) return false;
        value = *read;
    }
    *result = value;
    return true;
}

bool NativeUnwinder::Impl::set_registers(Dwfl_Thread* thread, void* argument) {
    const auto& r = *static_cast<Impl*>(argument)->registers;
    // DWARF's numbering (System V ABI, AMD64 supplement, figure 3.36) from perf's.
    const std::array<Dwarf_Word, 17> dwarf = {r[0],
                                              r[3],
                                              r[2],
                                              r[1],
                                              r[4],
                                              r[5],
                                              r[6],
                                              r[7],
                                              r[12],
                                              r[13],
                                              r[14],
                                              r[15],
                                              r[16],
                                              r[17],
                                              r[18],
                                              r[19],
                                              r[kPerfRegisterIp]};
    return ::dwfl_thread_state_registers(thread, 0, dwarf.size(), dwarf.data());
}

int NativeUnwinder::Impl::take_frame(Dwfl_Frame* frame, void* argument) {
    auto* impl = static_cast<Impl*>(argument);
    Dwarf_Addr pc = 0;
    bool activation = false;
    if (!::dwfl_frame_pc(frame, &pc, &activation) || pc == 0) return DWARF_CB_ABORT;
    impl->out->emplace_back(activation ? pc : pc - 1);
    return impl->out->size() < kMaxNativeFrames ? DWARF_CB_OK : DWARF_CB_ABORT;
}

NativeUnwinder::NativeUnwinder(int pid, const process::Memory& memory)
    : impl_(std::make_unique<Impl>(pid, memory)) {}

NativeUnwinder::~NativeUnwinder() = default;

std::vector<base::Address> NativeUnwinder::unwind(
    const std::array<std::uint64_t, kPerfRegisterCount>& registers, std::span<const std::byte> stack) {
    std::vector<base::Address> frames;
    Impl& impl = *impl_;
    impl.registers = &registers;
    impl.stack = stack;
    impl.out = &frames;
    if (impl.prepare(base::Address(registers[kPerfRegisterIp])))
        ::dwfl_getthread_frames(impl.dwfl, impl.pid, &Impl::take_frame, &impl);
    if (frames.empty()) frames.emplace_back(registers[kPerfRegisterIp]);
    return frames;
}

NativeUnwinder::Symbol NativeUnwinder::symbol_at(base::Address address) {
    Symbol symbol;
    Impl& impl = *impl_;
    reporting = &impl;
    if (impl.dwfl == nullptr) return symbol;
    Dwfl_Module* module = ::dwfl_addrmodule(impl.dwfl, address.value());
    if (module == nullptr) return symbol;
    if (const char* path =
            ::dwfl_module_info(module, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr))
        symbol.module = path;
    GElf_Off offset = 0;
    GElf_Sym sym{};
    const char* name =
        ::dwfl_module_addrinfo(module, address.value(), &offset, &sym, nullptr, nullptr, nullptr);
    // Beyond a symbol's end is somebody else's code whose symbol was stripped.
    if (name != nullptr && (sym.st_size == 0 ? offset < 4096 : offset < sym.st_size))
        symbol.name = demangle(name);
    return symbol;
}

std::optional<base::Address> NativeUnwinder::eh_frame_header(base::Address address) {
    Impl& impl = *impl_;
    reporting = &impl;
    Dwfl_Module* module = impl.dwfl == nullptr ? nullptr : ::dwfl_addrmodule(impl.dwfl, address.value());
    GElf_Addr bias = 0;
    Elf* elf = module == nullptr ? nullptr : ::dwfl_module_getelf(module, &bias);
    std::size_t count = 0;
    if (elf == nullptr || ::elf_getphdrnum(elf, &count) != 0) return std::nullopt;
    for (std::size_t i = 0; i < count && i < 256; ++i) {
        GElf_Phdr header;
        if (::gelf_getphdr(elf, static_cast<int>(i), &header) != nullptr && header.p_type == PT_GNU_EH_FRAME)
            return base::Address(bias) + header.p_vaddr;
    }
    return std::nullopt;
}

}  // namespace memattach::probe
