/* The MPI calls of backend `mpi`, with MPI's own types kept on this side: what a handle is (a number, a
 * pointer) and how large a request is differs between MPI libraries, and only their header knows. Rust sees
 * an opaque link, bytes and numbers. All functions return MPI's error code, MPI_SUCCESS being 0 in every MPI. */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    MPI_Comm comm;
    MPI_Request *requests;
    int used;
    int room;
} fovea_link;

/* What went wrong in fovea_mpi_open, where it is not an error of MPI. */
enum { FOVEA_RUNNING = -1, FOVEA_NO_THREADS = -2, FOVEA_NO_MEMORY = -3 };

/* Starts MPI with a private communicator over all ranks, whose errors are returned. `call` names the
 * call that failed, `level` is the support for threads that the library offers. */
int fovea_mpi_open(fovea_link **out, int *rank, int *world, int *level, const char **call) {
    int running = 0, code;
    *call = "MPI_Initialized";
    if ((code = MPI_Initialized(&running)) != MPI_SUCCESS) return code;
    if (running) return FOVEA_RUNNING;
    *call = "MPI_Init_thread";
    if ((code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, level)) != MPI_SUCCESS) return code;
    if (*level < MPI_THREAD_SERIALIZED) {
        MPI_Finalize();
        return FOVEA_NO_THREADS;
    }
    fovea_link *link = calloc(1, sizeof *link);
    if (!link) return FOVEA_NO_MEMORY;
    *call = "MPI_Comm_dup";
    if ((code = MPI_Comm_dup(MPI_COMM_WORLD, &link->comm)) != MPI_SUCCESS) {
        free(link);
        return code;
    }
    *out = link;
    /* Without this every error would end the process. */
    *call = "MPI_Comm_set_errhandler";
    if ((code = MPI_Comm_set_errhandler(link->comm, MPI_ERRORS_RETURN)) != MPI_SUCCESS) return code;
    *call = "MPI_Comm_rank";
    if ((code = MPI_Comm_rank(link->comm, rank)) != MPI_SUCCESS) return code;
    *call = "MPI_Comm_size";
    return MPI_Comm_size(link->comm, world);
}

/* Room for one more request. Requests move when the list grows, which MPI allows: a request is a handle. */
static MPI_Request *next(fovea_link *link) {
    if (link->used == link->room) {
        int room = link->room ? 2 * link->room : 16;
        MPI_Request *larger = realloc(link->requests, (size_t)room * sizeof *larger);
        if (!larger) return NULL;
        link->requests = larger;
        link->room = room;
    }
    link->requests[link->used] = MPI_REQUEST_NULL;
    return &link->requests[link->used++];
}

int fovea_mpi_send(fovea_link *link, const void *data, int bytes, int peer, int tag) {
    MPI_Request *request = next(link);
    if (!request) return MPI_ERR_OTHER;
    /* Old headers lack the const. */
    return MPI_Isend((void *)data, bytes, MPI_BYTE, peer, tag, link->comm, request);
}

int fovea_mpi_receive(fovea_link *link, void *data, int bytes, int peer, int tag) {
    MPI_Request *request = next(link);
    if (!request) return MPI_ERR_OTHER;
    return MPI_Irecv(data, bytes, MPI_BYTE, peer, tag, link->comm, request);
}

/* Tests all requests; `finished`, as long as their number, receives the indices of the `done` that have
 * just been completed. */
int fovea_mpi_progress(fovea_link *link, int *done, int *finished) {
    int code = MPI_Testsome(link->used, link->requests, done, finished, MPI_STATUSES_IGNORE);
    if (code != MPI_SUCCESS || *done == MPI_UNDEFINED) *done = 0;
    return code;
}

/* Forgets all requests, which are complete. */
void fovea_mpi_forget(fovea_link *link) { link->used = 0; }

/* Takes a message with this tag from any rank, if one is there. */
int fovea_mpi_take(fovea_link *link, void *data, int bytes, int tag, int *there, int *source, const char **call) {
    MPI_Status status;
    *call = "MPI_Iprobe";
    int code = MPI_Iprobe(MPI_ANY_SOURCE, tag, link->comm, there, &status);
    if (code != MPI_SUCCESS || !*there) return code;
    *source = status.MPI_SOURCE;
    *call = "MPI_Recv";
    return MPI_Recv(data, bytes, MPI_BYTE, *source, tag, link->comm, MPI_STATUS_IGNORE);
}

/* Writes what `code` means into `text`, `room` bytes, cut off if need be; its length, or 0. */
int fovea_mpi_error(int code, char *text, int room) {
    char whole[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, whole, &length) != MPI_SUCCESS || length < 0) return 0;
    if (length > room) length = room;
    memcpy(text, whole, (size_t)length);
    return length;
}

/* Ends MPI; no request is under way, and the link is gone afterwards. */
void fovea_mpi_close(fovea_link *link) {
    MPI_Comm_free(&link->comm);
    free(link->requests);
    free(link);
    MPI_Finalize();
}
