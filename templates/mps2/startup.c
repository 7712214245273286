/* SPDX-License-Identifier: Apache-2.0
 * Start-up code for the Arm MPS2 boards, and system calls for the C library: output and exit by semihosting. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

extern uint32_t data_load, data_begin, data_end, bss_begin, bss_end, heap_begin, heap_end, stack_top;

int main(void);
void reset(void);
void fault(void);
void report_fault(const uint32_t *frame);
int _write(int file, const char *text, int length);
int _read(int file, char *text, int length);
int _close(int file);
int _lseek(int file, int offset, int whence);
int _fstat(int file, struct stat *status);
int _isatty(int file);
int _kill(int process, int signal);
int _getpid(void);
void *_sbrk(ptrdiff_t bytes);
void _exit(int status);

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_EXIT_EXTENDED = 0x20 };
/* System control block: traps, fault status and enabled coprocessors. */
#define CCR (*(volatile uint32_t *)0xE000ED14u)
#define CFSR (*(volatile uint32_t *)0xE000ED28u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)
enum { UNALIGN_TRP = 1 << 3 };

enum { APPLICATION_EXIT = 0x20026 };

static uint32_t semihost(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* The vectors that a program without interrupts needs. */
__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};

void reset(void)
{
#ifdef __ARM_FEATURE_MVE
    CPACR |= 0xfu << 20; /* enable the floating-point and vector units */
    __asm__ volatile("dsb\nisb" ::: "memory");
#endif
    const uint32_t *from = &data_load;
    for (uint32_t *to = &data_begin; to < &data_end;) {
        *to++ = *from++;
    }
    for (uint32_t *to = &bss_begin; to < &bss_end;) {
        *to++ = 0;
    }
#ifdef TRAP_UNALIGNED
    CCR |= UNALIGN_TRP; /* QEMU implements this trap */
#endif
    _exit(main());
}

/* Passes the exception frame to report_fault. */
__attribute__((naked)) void fault(void)
{
    __asm__ volatile("mov r0, sp\n b report_fault");
}

/* `frame` holds r0 to r3, r12, lr, pc and psr at the fault. */
void report_fault(const uint32_t *frame)
{
    const uint32_t usage = CFSR >> 16;
    const char *const reason = (usage & 0x100) != 0   ? "unaligned access"
                               : (usage & 0x200) != 0 ? "division by zero"
                               : usage != 0           ? "illegal instruction"
                                                      : "illegal address";
    printf("FAULT: %s at 0x%08lx\n", reason, (unsigned long)frame[6]);
    fflush(stdout);
    _exit(3);
}

void _exit(int status)
{
    const uint32_t block[] = {APPLICATION_EXIT, (uint32_t)status};
    semihost(SYS_EXIT_EXTENDED, block);
    for (;;) {
    }
}

int _write(int file, const char *text, int length)
{
    static uint32_t console = 0;
    (void)file;
    if (console == 0) {
        const uint32_t open[] = {(uint32_t) ":tt", 4 /* "w" */, 3};
        console = semihost(SYS_OPEN, open);
    }
    const uint32_t write[] = {console, (uint32_t)text, (uint32_t)length};
    return length - (int)semihost(SYS_WRITE, write);
}

/* Only for printf's buffer. */
void *_sbrk(ptrdiff_t bytes)
{
    static char *heap = (char *)&heap_begin;
    if (bytes > (char *)&heap_end - heap) {
        return (void *)-1;
    }
    heap += bytes;
    return heap - bytes;
}

int _fstat(int file, struct stat *status)
{
    (void)file;
    status->st_mode = S_IFCHR;
    return 0;
}

int _isatty(int file)
{
    (void)file;
    return 1;
}

int _read(int file, char *text, int length)
{
    (void)file;
    (void)text;
    (void)length;
    return 0;
}

int _close(int file)
{
    (void)file;
    return 0;
}

int _lseek(int file, int offset, int whence)
{
    (void)file;
    (void)offset;
    (void)whence;
    return 0;
}

int _kill(int process, int signal)
{
    (void)process;
    _exit(signal);
    return 0;
}

int _getpid(void)
{
    return 1;
}
