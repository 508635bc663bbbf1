//! Memory that this process has freed and its allocator keeps: given back to the system, where glibc is the allocator.
//!
//! The one place with `unsafe`: both calls are of the C library, for which nobody has made a safe wrapper.

/// Lets memory of more than 128 KiB be taken from the system for an allocation alone and given back with it. Left to
/// itself glibc raises this bound up to 32 MiB, and keeps as much for good after each hashed password or storm.
pub fn keep_no_large_blocks() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "sets a number of the allocator's under its own lock, and takes no pointer")]
    // SAFETY: see the reason. A refusal leaves things as they are.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Gives back whole pages that hold nothing. On its own glibc does so at the end of its heap only, not before something
/// that stays. Takes the time to look through all that is free: a millisecond or so after a storm.
pub fn give_back_free_pages() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "walks through the allocator's own lists under its locks, and takes no pointer")]
    // SAFETY: see the reason.
    unsafe {
        libc::malloc_trim(0);
    }
}
