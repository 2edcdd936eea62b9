// vpdpbusd and vpdpwssd for processors that lack them: the trap they cause is answered by computing them.
//
// Knows the form that kernels/matmul/dot.h uses: VEX, 256 bits. Everything else that traps goes to whoever handled it before. A
// trap takes about two microseconds.
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

namespace {

constexpr int LEGACY_XMM = 160, UPPER_HALVES = 576;  // in the XSAVE area, as the kernel leaves it on the stack
constexpr int REGISTERS[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

struct sigaction before;
int64_t num_trapped;

struct Instruction {
    uint8_t opcode = 0;
    int to = 0, weights = 0, other = 0;  // vector registers; other -1: in memory
    const uint8_t* at = nullptr;
    const uint8_t* end = nullptr;
};

// ModRM and what follows it.
void read_operand(const uint8_t* p, int x, int b, greg_t* regs, Instruction& to) {
    const uint8_t modrm = *p++;
    const int mod = modrm >> 6, rm = modrm & 7;
    if (mod == 3) {
        to.other = rm | b << 3;
        to.end = p;
        return;
    }
    int64_t address = 0;
    int base = rm | b << 3;
    if (rm == 4) {
        const uint8_t sib = *p++;
        const int index = (sib >> 3 & 7) | x << 3;
        if (index != 4) address += regs[REGISTERS[index]] << (sib >> 6);
        base = (sib & 7) == 5 && mod == 0 ? -1 : (sib & 7) | b << 3;
    }
    if (base >= 0) address += regs[REGISTERS[base]];
    int32_t wide = 0;
    if (mod == 1) wide = (int8_t)*p++;
    if (mod == 2 || base < 0) {
        memcpy(&wide, p, 4);
        p += 4;
    }
    to.other = -1;
    to.at = (const uint8_t*)(address + wide);
    to.end = p;
}

bool decode(const uint8_t* p, greg_t* regs, Instruction& to) {
    if (p[0] != 0xc4) return false;
    const int r = !(p[1] & 0x80), x = !(p[1] & 0x40), b = !(p[1] & 0x20);
    // Map 0F38, prefix 66, 256 bits; not relative to the instruction.
    if ((p[1] & 0x1f) != 0x02 || (p[2] & 0x87) != 5) return false;
    const uint8_t* rest = p + 3;
    to.opcode = rest[0];
    if (to.opcode != 0x50 && to.opcode != 0x52) return false;
    if ((rest[1] & 0xc7) == 5) return false;
    to.to = (rest[1] >> 3 & 7) | r << 3;
    to.weights = ~(p[2] >> 3) & 15;
    read_operand(rest + 1, x, b, regs, to);
    return true;
}

void read_register(const uint8_t* area, int n, void* to) {
    memcpy(to, area + LEGACY_XMM + 16 * n, 16);
    memcpy((uint8_t*)to + 16, area + UPPER_HALVES + 16 * n, 16);
}

void on_trap(int signal, siginfo_t* info, void* context) {
    ucontext_t* c = (ucontext_t*)context;
    greg_t* regs = c->uc_mcontext.gregs;
    uint8_t* area = (uint8_t*)c->uc_mcontext.fpregs;
    Instruction i;
    if (!decode((const uint8_t*)regs[REG_RIP], regs, i)) {
        if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
        sigaction(signal, &before, nullptr);
        return;
    }
    int32_t sums[8];
    uint8_t weights[32], other[32];
    read_register(area, i.to, sums);
    read_register(area, i.weights, weights);
    if (i.other >= 0) read_register(area, i.other, other);
    else memcpy(other, i.at, 32);
    for (int lane = 0; lane < 8; lane++) {
        int32_t total = sums[lane];
        if (i.opcode == 0x50) for (int j = 0; j < 4; j++) total += weights[lane * 4 + j] * (int8_t)other[lane * 4 + j];
        else for (int j = 0; j < 2; j++) {
            int16_t a, b;
            memcpy(&a, weights + lane * 4 + j * 2, 2);
            memcpy(&b, other + lane * 4 + j * 2, 2);
            total += a * b;
        }
        sums[lane] = total;
    }
    memcpy(area + LEGACY_XMM + 16 * i.to, sums, 16);
    memcpy(area + UPPER_HALVES + 16 * i.to, sums + 4, 16);
    *(uint64_t*)(area + 512) |= 4;  // the upper halves are in use
    regs[REG_RIP] = (greg_t)i.end;
    __atomic_fetch_add(&num_trapped, 1, __ATOMIC_RELAXED);
}

}  // namespace

extern "C" void trap_start() {
    struct sigaction action = {};
    action.sa_sigaction = on_trap;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before);
}

extern "C" void trap_stop() { sigaction(SIGILL, &before, nullptr); }

// Instructions computed so far.
extern "C" int64_t trap_count() { return __atomic_load_n(&num_trapped, __ATOMIC_RELAXED); }
