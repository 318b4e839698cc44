//! One value per task or socket, freed with it: faster than a hash by pid, and no pid can be reused
//! under it.
//!
//! aya-ebpf 0.2 has no such map for tasks, and its one for sockets takes sockets of its own types only,
//! which a packet's isn't.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_sock, task_struct},
    helpers::generated::{bpf_sk_storage_get, bpf_task_storage_get},
};
use core::{
    ffi::c_void,
    ptr::{self, NonNull},
};

/// `BPF_MAP_TYPE_SK_STORAGE`
const SOCKET: usize = 24;
/// `BPF_MAP_TYPE_TASK_STORAGE`
const TASK: usize = 29;

pub type SocketStorage<T> = Storage<T, SOCKET>;
pub type TaskStorage<T> = Storage<T, TASK>;

/// What a map of the type `TYPE` keeps a value for.
pub trait Owner<const TYPE: usize> {
    /// The helper that finds the value.
    ///
    /// # Safety
    /// `map` is a map of the type `TYPE`; `owner` is one that the verifier knows as such.
    unsafe fn value(map: *mut c_void, owner: *mut Self, flags: u64) -> *mut c_void;
}

impl Owner<TASK> for task_struct {
    #[inline(always)]
    unsafe fn value(map: *mut c_void, owner: *mut Self, flags: u64) -> *mut c_void {
        // SAFETY: as the caller promises.
        unsafe { bpf_task_storage_get(map, owner, ptr::null_mut(), flags) }
    }
}

impl Owner<SOCKET> for bpf_sock {
    #[inline(always)]
    unsafe fn value(map: *mut c_void, owner: *mut Self, flags: u64) -> *mut c_void {
        // SAFETY: as the caller promises.
        unsafe { bpf_sk_storage_get(map, owner.cast(), ptr::null_mut(), flags) }
    }
}

/// Definition of a storage map in the layout that BTF loaders read.
#[repr(C)]
pub struct Storage<T: 'static, const TYPE: usize> {
    r#type: *const [i32; TYPE],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields only carry types to the loader; nobody dereferences them.
unsafe impl<T, const TYPE: usize> Sync for Storage<T, TYPE> {}

impl<T, const TYPE: usize> Storage<T, TYPE> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The owner's value, if it has one.
    ///
    /// # Safety
    /// `owner` comes from the program's context, and the verifier knows it for what it is.
    #[inline(always)]
    pub unsafe fn get<O: Owner<TYPE>>(&self, owner: *mut O) -> Option<NonNull<T>> {
        // SAFETY: as the caller promises.
        unsafe { self.lookup(owner, 0) }
    }

    /// The owner's value, zeroed if it is new. `None` when the kernel has no memory for it.
    ///
    /// # Safety
    /// As for [`Self::get`].
    #[inline(always)]
    pub unsafe fn get_or_zeroed<O: Owner<TYPE>>(&self, owner: *mut O) -> Option<NonNull<T>> {
        // SAFETY: as the caller promises.
        unsafe { self.lookup(owner, u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE)) }
    }

    #[inline(always)]
    unsafe fn lookup<O: Owner<TYPE>>(&self, owner: *mut O, flags: u64) -> Option<NonNull<T>> {
        // SAFETY: `self` is a map definition that the loader replaces by the map; `owner` is vouched for.
        NonNull::new(
            unsafe { O::value(ptr::from_ref(self).cast_mut().cast(), owner, flags) }.cast(),
        )
    }
}
