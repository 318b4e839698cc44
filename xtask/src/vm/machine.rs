//! The emulated machine: its files on this side, and QEMU's command line.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::setup::Guest;

const DISK_BYTES: u64 = 512 << 20;

/// `tsc=reliable`: under emulation the watchdog finds the time stamp counter late and takes a clock that
/// every reading of costs microseconds.
const KERNEL_ARGUMENTS: &str = "console=ttyS1 quiet panic=-1 cgroup_no_v1=all psi=1 tsc=reliable";

/// Where its files are.
pub(super) struct Machine {
    /// What the guest's memory is filled with first.
    pub(super) initramfs: PathBuf,
    /// What the kernel says, from the second serial line.
    pub(super) log: PathBuf,
    /// No hardware help: slower by a factor of ten or more.
    pub(super) emulated: bool,
    disk: PathBuf,
}

impl Machine {
    /// Makes the folder, and an empty disk in it.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let disk = folder.join("disk.img");
        // Takes no room until it is written to.
        File::create(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| disk.display().to_string())?;
        Ok(Self {
            initramfs: folder.join("initramfs.cpio"),
            log: folder.join("kernel.log"),
            emulated: !has_kvm(),
            disk,
        })
    }

    /// Boots it; standard output is the first serial line.
    pub(super) fn command(&self, context: &Context, guest: &Guest) -> Command {
        let mut command = guest.qemu(context);
        command.args(["-cpu", "max", "-machine"]);
        command.arg(format!(
            "q35,accel={}",
            if self.emulated { "tcg" } else { "kvm" }
        ));
        command.args(["-smp", "2", "-m", "2G", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(guest.image());
        command.arg("-initrd").arg(&self.initramfs);
        command.args(["-append", KERNEL_ARGUMENTS]);
        command.args(["-serial", "stdio", "-serial"]);
        command.arg(format!("file:{}", self.log.display()));
        let disk = format!(
            "driver=raw,node-name=disk,file.driver=file,file.filename={}",
            // The only character that means something there.
            self.disk.display().to_string().replace(',', ",,")
        );
        command.arg("-blockdev").arg(disk);
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
        command
    }
}

/// True where KVM can be expected to work: there are machines with the device and without the processor's help,
/// on which a guest never gets anywhere.
fn has_kvm() -> bool {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.is_ok() && has_virtualization(&processor)
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| {
        line.split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_help_is_a_flag_of_the_processor() {
        assert!(has_virtualization(
            "processor\t: 0\nflags\t\t: fpu svm sse\n"
        ));
        assert!(has_virtualization("flags\t\t: fpu vmx\n"));
        assert!(!has_virtualization("flags\t\t: fpu svmx\nbugs\t\t: vmx\n"));
    }
}
