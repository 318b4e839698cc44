//! One value per task, freed with it: faster than a hash by pid, and no pid can be reused under it.
//!
//! aya-ebpf 0.2 has storage maps for sockets, inodes and cgroups but not yet for tasks.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, task_struct},
    helpers::generated::bpf_task_storage_get,
};
use core::ptr::{self, NonNull};

/// `BPF_MAP_TYPE_TASK_STORAGE`
const MAP_TYPE: usize = 29;

/// Definition of a task storage map in the layout that BTF loaders read.
#[repr(C)]
pub struct TaskStorage<T: 'static> {
    r#type: *const [i32; MAP_TYPE],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields only carry types to the loader; nobody dereferences them.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The task's value, if it has one.
    ///
    /// # Safety
    /// `task` comes from the program's context.
    #[inline(always)]
    pub unsafe fn get(&self, task: *mut task_struct) -> Option<NonNull<T>> {
        // SAFETY: as the caller promises.
        unsafe { self.lookup(task, 0) }
    }

    /// The task's value, zeroed if it is new. `None` when the kernel has no memory for it.
    ///
    /// # Safety
    /// `task` comes from the program's context.
    #[inline(always)]
    pub unsafe fn get_or_zeroed(&self, task: *mut task_struct) -> Option<NonNull<T>> {
        // SAFETY: as the caller promises.
        unsafe { self.lookup(task, u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE)) }
    }

    #[inline(always)]
    unsafe fn lookup(&self, task: *mut task_struct, flags: u64) -> Option<NonNull<T>> {
        // SAFETY: `self` is a map definition that the loader replaces by the map; `task` is vouched for.
        NonNull::new(
            unsafe {
                bpf_task_storage_get(
                    ptr::from_ref(self).cast_mut().cast(),
                    task,
                    ptr::null_mut(),
                    flags,
                )
            }
            .cast(),
        )
    }
}
