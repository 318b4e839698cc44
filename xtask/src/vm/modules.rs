//! Kernel modules, in the order in which they can be loaded.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// `modules.dep`: each module's file with the files that it needs.
pub(super) struct Modules<'text>(BTreeMap<&'text str, Vec<&'text str>>);

impl<'text> Modules<'text> {
    pub(super) fn parse(text: &'text str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| {
                    let (file, needs) = line.split_once(':')?;
                    Some((file, needs.split_whitespace().collect()))
                })
                .collect(),
        )
    }

    /// Files of these modules and of all that they need, each behind what it needs.
    pub(super) fn in_order(&self, names: &[&str]) -> Result<Vec<&'text str>> {
        let mut order = Vec::new();
        for name in names {
            let known = self.0.keys().find(|file| module_name(file) == *name);
            let file = known.with_context(|| format!("the kernel has no module {name}"))?;
            self.add(file, &mut order);
        }
        Ok(order)
    }

    fn add(&self, file: &'text str, order: &mut Vec<&'text str>) {
        if order.contains(&file) {
            return;
        }
        // depmod refuses circles, so this ends.
        for need in self.0.get(file).into_iter().flatten() {
            self.add(need, order);
        }
        order.push(file);
    }
}

/// `virtio_blk` of `kernel/drivers/block/virtio_blk.ko.xz`: dashes and underscores are the same.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/block/virtio_blk.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n\
                       kernel/virtio/virtio.ko:\n\
                       kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko\n\
                       kernel/virtio/virtio-pci.ko.xz: kernel/virtio/virtio_ring.ko\n";

    #[test]
    fn each_module_comes_once_and_behind_what_it_needs() {
        let order = Modules::parse(DEP)
            .in_order(&["virtio_pci", "virtio_blk"])
            .unwrap();
        assert_eq!(
            order,
            [
                "kernel/virtio/virtio.ko",
                "kernel/virtio/virtio_ring.ko",
                "kernel/virtio/virtio-pci.ko.xz",
                "kernel/block/virtio_blk.ko",
            ]
        );
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let error = Modules::parse(DEP).in_order(&["nvme"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module nvme");
    }
}
