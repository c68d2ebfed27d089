"""System call filter of the sandbox: a hand-assembled BPF program for `bwrap --seccomp`.

Namespaces hide the host; this filter reduces the attack surface of the kernel. It is a deny list, because an allow list
breaks with every new C library. Denied are: escaping or deepening the isolation (mount, unshare, setns, new
namespaces through clone), reading other processes (ptrace, process_vm_*), large and often vulnerable subsystems that
no tool needs (bpf, io_uring, perf, userfaultfd, keyrings), memory outside our limits (memfd, System V
segments), and socket families other than UNIX and IP: `AF_VSOCK` reaches the hypervisor in spite of the network namespace.

Numbers are from Linux `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`; the layout of
`struct seccomp_data` and the return values are from `include/uapi/linux/seccomp.h`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

# The number on x86-64, then on aarch64.
_DENIED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_X86_ONLY = {"ioperm": 173, "iopl": 172, "modify_ldt": 154}
# AUDIT_ARCH_*, then the numbers of clone, prctl and socket; clone3 is 435 everywhere.
_MACHINES = {"x86_64": (0xC000003E, 56, 157, 41), "aarch64": (0xC00000B7, 220, 167, 198)}
_CLONE3 = 435
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_PR_SET_PDEATHSIG = 1
_SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

_NR, _ARCH, _ARG0 = 0, 4, 16  # offsets in struct seccomp_data; both machines are little-endian
_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

SUPPORTED_MACHINES = tuple(_MACHINES)


def program(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        machine: `platform.machine()`.

    Raises:
        KeyError: no numbers are known for this machine.
    """
    arch, clone, prctl, socket = _MACHINES[machine]
    column = 0 if machine == "x86_64" else 1
    denied = [numbers[column] for numbers in _DENIED.values()]
    # A foreign ABI (i386 on x86-64) has other numbers, so its calls would pass the filter: kill the process.
    code = [_op(_LOAD, _ARCH), _op(_JUMP_EQ, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NR)]
    if machine == "x86_64":
        denied += _X86_ONLY.values()
        code += [_op(_JUMP_GE, _X32_BIT, 0, 1), _op(_RETURN, _KILL)]
    for number in denied:
        code += _refuse(_JUMP_EQ, number, errno.EPERM)
    # clone3 passes its flags by pointer, which a filter cannot read; after ENOSYS C libraries fall back to clone.
    code += _refuse(_JUMP_EQ, _CLONE3, errno.ENOSYS)
    code += _when(clone, [_op(_LOAD, _ARG0), *_refuse(_JUMP_SET, _NEW_NAMESPACES, errno.EPERM)])
    # bwrap's "die with parent" is a death signal, which this call could disable.
    code += _when(prctl, [_op(_LOAD, _ARG0), *_refuse(_JUMP_EQ, _PR_SET_PDEATHSIG, errno.EPERM)])
    families = [_op(_LOAD, _ARG0)]
    for family in _SOCKET_FAMILIES:
        families += [_op(_JUMP_EQ, family, 0, 1), _op(_RETURN, _ALLOW)]
    code += _when(socket, [*families, _op(_RETURN, _ERRNO | errno.EAFNOSUPPORT)])
    code.append(_op(_RETURN, _ALLOW))
    return b"".join(code)


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def _refuse(test: int, value: int, error: int) -> list[bytes]:
    return [_op(test, value, 0, 1), _op(_RETURN, _ERRNO | error)]


def _when(number: int, body: Sequence[bytes]) -> list[bytes]:
    """`body` for one system call. It may overwrite the accumulator, so it always ends with a return."""
    block = [*body, _op(_RETURN, _ALLOW)]
    return [_op(_JUMP_EQ, number, 0, len(block)), *block]
