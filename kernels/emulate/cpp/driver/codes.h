// The driver's result codes that the stand-in returns, with CUDA's names and numbers.
#pragma once

#define DRIVER_CODES(X)                                                                        \
    X(SUCCESS, 0, "no error")                                                                  \
    X(ERROR_INVALID_VALUE, 1, "invalid argument")                                              \
    X(ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                 \
    X(ERROR_NOT_INITIALIZED, 3, "initialization error")                                        \
    X(ERROR_DEINITIALIZED, 4, "driver shutting down")                                          \
    X(ERROR_NO_DEVICE, 100, "no CUDA-capable device is detected")                              \
    X(ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                     \
    X(ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                              \
    X(ERROR_INVALID_CONTEXT, 201, "invalid device context")                                    \
    X(ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                    \
    X(ERROR_ILLEGAL_STATE, 401, "the operation cannot be performed in the present state")      \
    X(ERROR_NOT_FOUND, 500, "named symbol not found")                                          \
    X(ERROR_NOT_READY, 600, "device not ready")                                                \
    X(ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                  \
    X(ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                                  \
    X(ERROR_NOT_SUPPORTED, 801, "operation not supported")                                     \
    X(ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing") \
    X(ERROR_STREAM_CAPTURE_INVALIDATED, 901, "operation failed due to a previous error during capture") \
    X(ERROR_STREAM_CAPTURE_MERGE, 902, "operation would result in a merge of separate capture sequences") \
    X(ERROR_STREAM_CAPTURE_UNMATCHED, 903, "capture was not ended in the same stream as it began") \
    X(ERROR_STREAM_CAPTURE_UNJOINED, 904, "capturing stream has unjoined work")                \
    X(ERROR_STREAM_CAPTURE_ISOLATION, 905, "dependency created on uncaptured work in another stream") \
    X(ERROR_CAPTURED_EVENT, 907, "operation not permitted on an event last recorded in a capturing stream")

enum Code : int {
#define DRIVER_CODE(name, number, text) name = number,
    DRIVER_CODES(DRIVER_CODE)
#undef DRIVER_CODE
};
