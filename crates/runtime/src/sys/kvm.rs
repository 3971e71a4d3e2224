//! A few instructions in a vCPU, for the KVM probe.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};

/// One page of guest memory, aligned as KVM wants it (`KVM_SET_USER_MEMORY_REGION`).
#[repr(C, align(4096))]
struct Page([u8; PAGE_LEN]);

const PAGE_LEN: usize = 4096;

/// Counts down from `iterations` in a fresh VM, 32-bit flat protected mode.
///
/// Protected mode, because KVM may legitimately emulate real mode on old processors.
pub(crate) fn run_loop(iterations: u32) -> Result<(), String> {
    let step = |what: &'static str| move |error| format!("{what}: {error}");
    let kvm = Kvm::new().map_err(step("open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(step("create a VM"))?;
    let page: &'static mut Page = Box::leak(Box::new(Page([0; PAGE_LEN])));
    let count = iterations.to_le_bytes();
    // mov ecx, count; back: dec ecx; jnz back; hlt
    let code = [0xb9, count[0], count[1], count[2], count[3], 0x49, 0x75, 0xfd, 0xf4];
    page.0[..code.len()].copy_from_slice(&code);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE_LEN as u64,
        userspace_addr: std::ptr::from_mut(page) as u64,
    };
    // SAFETY: KVM requires that the host range stays mapped while the VM lives and that nothing in
    // this process relies on its contents: the page is leaked, so it is never freed, and the
    // exclusive reference to it is not used again.
    unsafe { vm.set_user_memory_region(region) }.map_err(step("give the VM memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(step("create a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(step("read the vCPU's registers"))?;
    let data = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cs = kvm_segment { selector: 8, type_: 11, ..data };
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).map_err(step("enter protected mode"))?;
    let regs = kvm_regs { rip: 0, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(step("set the vCPU's registers"))?;
    match vcpu.run().map_err(step("run the vCPU"))? {
        VcpuExit::Hlt => Ok(()),
        other => Err(format!("KVM does not run guest code: the vCPU stopped with {other:?}")),
    }
}
