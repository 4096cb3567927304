"""Runs a command in which a system call is refused, as in containers: without_call.py NUMBER COMMAND…"""

import ctypes
import os
import struct
import sys

EACCES = 13

# struct sock_filter: code, jump if true, jump if false, k (linux/filter.h); the call's number is the first word that
# a filter sees (struct seccomp_data).
FILTER = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0),  # load it
        (0x15, 0, 1, int(sys.argv[1])),
        (0x06, 0, 0, 0x00050000 | EACCES),  # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )
)


def main():
    program = ctypes.create_string_buffer(FILTER, len(FILTER))
    fprog = struct.pack("HxxxxxxP", len(FILTER) // 8, ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        sys.exit(f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}")
    if libc.prctl(seccomp, ctypes.c_ulong(mode_filter), fprog) != 0:
        sys.exit(f"PR_SET_SECCOMP: {os.strerror(ctypes.get_errno())}")
    os.execv(sys.argv[2], sys.argv[2:])


main()
