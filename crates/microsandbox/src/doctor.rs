//! What this machine has and lacks for running sandboxes.

mod confinement;
mod guest;
mod machine;
mod qemu;
mod trial;

use microsandbox_runtime::{BUILD, KvmProbe, explained, own_program};

use crate::{MicrosandboxResult, home::Home};

pub use trial::try_boot;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What mends it, as a command where there is one.
    pub remedy: Option<String>,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Sandboxes run, but not as well as they could.
    Warn,
    /// Sandboxes do not run.
    Fail,
}

/// Looks at everything a sandbox needs. Changes nothing but the kept result of the KVM probe, and
/// unpacks the guest where the program carries one.
///
/// # Errors
/// [`crate::MicrosandboxError::InvalidConfig`] when the settings themselves are wrong.
pub fn examine() -> MicrosandboxResult<Vec<Check>> {
    let home = Home::from_env()?;
    let mut checks = vec![machine::check_home(&home), machine::check_memory()];
    let probe = match home.program() {
        Ok(program) => {
            let detail = match own_program() {
                Some(_) => "this program".to_owned(),
                None => program.path().display().to_string(),
            };
            checks.push(Check::ok("supervisor", format!("{detail}, microsandbox {BUILD}")));
            home.probe(&program)
        }
        Err(error) => {
            let detail = error.to_string();
            checks.push(Check::fail("supervisor", detail.clone(), error.hint()));
            KvmProbe { works: false, detail, took_us: 0 }
        }
    };
    checks.push(machine::judge_kvm(&probe));
    checks.push(qemu::check(&home, probe.works));
    checks.extend(confinement::check());
    checks.extend(guest::check(&home.guest()));
    checks.push(match home.selected_vmm(&probe) {
        Ok(vmm) => Check::ok("driver", format!("{} with {}", vmm.kind, vmm.accel)),
        Err(error) => Check::fail("driver", explained(&error), error.hint()),
    });
    Ok(checks)
}

impl Check {
    fn ok(name: &'static str, detail: String) -> Self {
        Self { name, verdict: Verdict::Ok, detail, remedy: None }
    }

    fn warn(name: &'static str, detail: String, remedy: Option<String>) -> Self {
        Self { name, verdict: Verdict::Warn, detail, remedy }
    }

    fn fail(name: &'static str, detail: String, remedy: Option<String>) -> Self {
        Self { name, verdict: Verdict::Fail, detail, remedy }
    }
}
