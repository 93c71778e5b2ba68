#!/usr/bin/env python3
"""Tries whether the libclang that bindgen will load can parse C headers: `libclang.py [HEADER [FLAG...]]`.

Ends with 0 and prints the library's path, or with 1 and the reason. The library is looked for as the crate clang-sys looks
for it; a library that loads and lacks its compiler's own headers (stddef.h) fails here as it would fail there.
"""

import ctypes
import glob
import os
import re
import subprocess
import sys
import tempfile

PATTERNS = ["libclang.so", "libclang-*.so", "libclang.so.*", "libclang-*.so.*"]
FOLDERS = ["/usr/local/llvm*/lib*", "/usr/local/lib*/*/*", "/usr/local/lib*/*", "/usr/local/lib*", "/usr/lib*/*/*", "/usr/lib*/*", "/usr/lib*"]


def candidates():
    given = os.environ.get("LIBCLANG_PATH")
    if given:
        if os.path.isfile(given):
            return [given]
        folders = [given]
    else:
        folders = []
        try:
            prefix = subprocess.run(["llvm-config", "--prefix"], capture_output=True, text=True, check=True).stdout.strip()
            folders += [prefix, prefix + "/bin", prefix + "/lib", prefix + "/lib64"]
        except (OSError, subprocess.CalledProcessError):
            pass
        folders += os.environ.get("LD_LIBRARY_PATH", "").split(":")
        folders += [folder for pattern in FOLDERS for folder in glob.glob(pattern)]
    found = [path for folder in folders if folder for pattern in PATTERNS for path in glob.glob(os.path.join(folder, pattern))]
    # The C++ library has a name that the patterns fit, and is another one.
    return [path for path in found if "-cpp." not in os.path.basename(path) and os.path.isfile(path)]


def version(path):
    match = re.fullmatch(r"libclang(?:\.so\.|-)([0-9.]+?)(?:\.so.*)?", os.path.basename(path))
    return [int(part) for part in match.group(1).split(".") if part] if match else []


def trial(path, header, flags):
    library = ctypes.CDLL(path)
    library.clang_createIndex.restype = ctypes.c_void_p
    library.clang_parseTranslationUnit.restype = ctypes.c_void_p
    library.clang_parseTranslationUnit.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.clang_getNumDiagnostics.argtypes = [ctypes.c_void_p]
    library.clang_getDiagnostic.restype = ctypes.c_void_p
    library.clang_getDiagnostic.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.clang_getDiagnosticSeverity.argtypes = [ctypes.c_void_p]
    with tempfile.NamedTemporaryFile("w", suffix=".h") as source:
        source.write(f"#include <stddef.h>\n#include <stdint.h>\n#include <{header}>\n")
        source.flush()
        words = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        index = library.clang_createIndex(0, 0)
        unit = library.clang_parseTranslationUnit(index, source.name.encode(), words, len(flags), None, 0, 0)
        if not unit:
            return f"{path} does not parse"
        count = library.clang_getNumDiagnostics(unit)
        severities = [library.clang_getDiagnosticSeverity(library.clang_getDiagnostic(unit, i)) for i in range(count)]
    if any(severity >= 3 for severity in severities):
        return f"{path} does not parse <{header}>: the compiler's own headers or the library's are missing"
    return None


def main():
    header, flags = (sys.argv[1] if len(sys.argv) > 1 else "stddef.h"), sys.argv[2:]
    found = candidates()
    if not found:
        print("there is no libclang (LIBCLANG_PATH names its folder)")
        return 1
    path = max(found, key=version)
    try:
        reason = trial(path, header, flags)
    except (OSError, AttributeError) as error:
        reason = f"{path} cannot be loaded: {error}"
    print(reason or path)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
