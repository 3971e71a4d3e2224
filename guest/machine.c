// SPDX-License-Identifier: GPL-2.0
/*
 * Facts about the machine, told on the command line instead of measured at every boot.
 *
 * lapic_khz=N     Frequency of the local APIC timer. The kernel measures it against the PIT and
 *                 then checks the result, 0.1 s each. QEMU and KVM both run it at exactly 1 GHz.
 * tsc_khz=N       Frequency of the time stamp counter, for machines without a paravirtual clock.
 *                 Measured against an emulated PIT it is off by up to 500 ppm, and on a busy host
 *                 the measurement fails: the guest then has no better clock than its tick.
 *                 Unlike tsc_early_khz=, nothing is measured beside it.
 * wallclock=none  There is no battery-backed clock to read; the agent is told the time. Without
 *                 this the kernel waits a second for a clock that is not there.
 *
 * A paravirtual clock, where there is one, replaces the last two.
 *
 * `cargo xtask kernel` adds this file to arch/x86/kernel of the source it builds; kernel.config
 * has what is true of every machine.
 */
#include <linux/cache.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/param.h>
#include <linux/string.h>
#include <linux/time64.h>
#include <asm/apic.h>
#include <asm/cpufeature.h>
#include <asm/x86_init.h>

static unsigned int known_tsc_khz __ro_after_init;

static int __init read_khz(const char *text, unsigned int *khz)
{
	if (!text || kstrtouint(text, 10, khz) || !*khz)
		return -EINVAL;
	return 0;
}

static int __init set_lapic_khz(char *text)
{
	unsigned int khz;
	int error = read_khz(text, &khz);

	/* Timer ticks in one jiffy, which is what the calibration would have left here. */
	if (!error)
		lapic_timer_period = khz * (1000 / HZ);
	return error;
}
early_param("lapic_khz", set_lapic_khz);

static unsigned long tell_tsc_khz(void)
{
	return known_tsc_khz;
}

static int __init set_tsc_khz(char *text)
{
	int error = read_khz(text, &known_tsc_khz);

	if (error)
		return error;
	x86_platform.calibrate_cpu = tell_tsc_khz;
	x86_platform.calibrate_tsc = tell_tsc_khz;
	setup_force_cpu_cap(X86_FEATURE_TSC_KNOWN_FREQ);
	return 0;
}
early_param("tsc_khz", set_tsc_khz);

static void tell_no_time(struct timespec64 *now)
{
	now->tv_sec = 0;
	now->tv_nsec = 0;
}

static int __init set_wallclock(char *text)
{
	if (!text || strcmp(text, "none"))
		return -EINVAL;
	x86_platform.get_wallclock = tell_no_time;
	return 0;
}
early_param("wallclock", set_wallclock);
