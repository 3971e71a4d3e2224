// SPDX-License-Identifier: GPL-2.0
/*
 * lapic_khz=N: the frequency of the local APIC timer, for machines where it is known.
 *
 * The kernel measures this timer against the PIT and then checks the result, 0.1 s each. Under
 * software emulation that is a third of the boot, and on a busy host the result is wrong. QEMU and
 * KVM both run the timer at exactly 1 GHz; CONFIG_CMDLINE in kernel.config says so.
 *
 * `cargo xtask kernel` adds this file to arch/x86/kernel of the source it builds.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/param.h>
#include <asm/apic.h>

static int __init set_lapic_khz(char *text)
{
	unsigned int khz;

	if (!text || kstrtouint(text, 10, &khz))
		return -EINVAL;
	/* Timer ticks in one jiffy, which is what the calibration would have left here. */
	lapic_timer_period = khz * (1000 / HZ);
	return 0;
}
early_param("lapic_khz", set_lapic_khz);
