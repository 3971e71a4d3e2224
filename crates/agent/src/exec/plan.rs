//! From a request to everything `execve` needs, or to a typed refusal. Nothing is started here.

use std::ffi::{CStr, CString};

use libc::c_int;
use microsandbox_protocol::{
    Exec, ExecDefaults, ExecFailed, ExecFailure, Program, Rlimit, RlimitResource,
};
use nix::errno::Errno;

use crate::exec::child::{StartFailed, Step};
use crate::sys::clone::CStrings;
use crate::users::{DEFAULT_USER, User};

/// `PATH` of a command whose sandbox has none: Debian's for root, which every distribution fits in.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `TERM` of a command on a terminal: every distribution's database has it, as Docker relies on.
const DEFAULT_TERM: &str = "xterm";

/// What the agent's own file is called among processes.
const AGENT: &str = "agentd";

/// A command, ready to start.
#[derive(Debug)]
pub(crate) struct Plan {
    pub program: Candidates,
    pub args: CStrings,
    pub env: Environment,
    pub cwd: CString,
    pub who: Who,
    pub rlimits: Vec<(c_int, libc::rlimit64)>,
    /// What a failure names: program, directory, user as requested.
    names: Names,
}

/// Where the program may be.
#[derive(Debug)]
pub(crate) enum Candidates {
    /// These paths, in order.
    Paths(Vec<CString>),
    /// The agent's own file.
    Agent,
}

/// Whom a command runs as.
#[derive(Debug)]
pub(crate) enum Who {
    /// The agent's own operations: root, whatever the guest's files say.
    Agent,
    /// To be looked for in the guest's files, which the command does itself.
    Named(String),
}

#[derive(Debug)]
struct Names {
    program: String,
    cwd: String,
    user: String,
    rlimits: Vec<RlimitResource>,
}

impl Plan {
    /// Lays `exec` over `defaults`. No file is looked at.
    ///
    /// # Errors
    /// What was wrong, as it is told to the client.
    pub(crate) fn new(exec: Exec, defaults: &ExecDefaults) -> Result<Self, ExecFailed> {
        let user = exec.user.or_else(|| defaults.user.clone());
        let user = user.unwrap_or_else(|| DEFAULT_USER.to_owned());
        let env = Environment::new(defaults, exec.env, exec.terminal.is_some())?;
        let cwd = exec.cwd.or_else(|| defaults.cwd.clone()).unwrap_or_else(|| "/".to_owned());
        let (name, program) = match exec.program {
            Program::Path(name) => {
                let candidates = candidates(&name, env.value("PATH").unwrap_or_default())?;
                (name, candidates)
            }
            Program::SelfTest => (AGENT.to_owned(), Candidates::Agent),
        };
        let mut args = vec![c_string(&name, "program name")?];
        if matches!(program, Candidates::Agent) {
            args.push(CString::from(crate::role::SELF_TEST));
        }
        for arg in &exec.args {
            args.push(c_string(arg, "argument")?);
        }
        Ok(Self {
            program,
            args: CStrings::new(args),
            env,
            cwd: c_string(&cwd, "working directory")?,
            who: Who::Named(user.clone()),
            rlimits: exec.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?,
            names: Names {
                program: name,
                cwd,
                user,
                rlimits: exec.rlimits.iter().map(|limit| limit.resource).collect(),
            },
        })
    }

    /// Runs the agent's own file as root, without an environment, with these arguments.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub(crate) fn of_agent(role: &CStr, argument: &str) -> Result<Self, ExecFailed> {
        let args = vec![
            c_string(AGENT, "program name")?,
            role.to_owned(),
            c_string(argument, "argument")?,
        ];
        Ok(Self {
            program: Candidates::Agent,
            args: CStrings::new(args),
            env: Environment::default(),
            cwd: CString::from(c"/"),
            who: Who::Agent,
            rlimits: Vec::new(),
            names: Names {
                program: AGENT.to_owned(),
                cwd: "/".to_owned(),
                user: DEFAULT_USER.to_owned(),
                rlimits: Vec::new(),
            },
        })
    }

    /// What the client is told when the child could not get as far as its program.
    pub(crate) fn explain(&self, failed: StartFailed) -> ExecFailed {
        let StartFailed { step, errno } = failed;
        let by_errno = match errno {
            Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE => ExecFailure::ResourceLimit,
            Errno::ENOMEM => ExecFailure::OutOfMemory,
            _ => ExecFailure::Other,
        };
        let (failure, object) = match step {
            Step::Clone | Step::Session | Step::Stdio => (by_errno, self.names.program.clone()),
            Step::Terminal => (ExecFailure::Terminal, "terminal".to_owned()),
            Step::Limit(index) => {
                let name = self.names.rlimits.get(usize::from(index));
                (
                    ExecFailure::ResourceLimit,
                    name.map(|name| format!("{name:?}")).unwrap_or_default(),
                )
            }
            Step::Identity => (ExecFailure::BadUser, self.names.user.clone()),
            Step::Directory => (ExecFailure::BadCwd, self.names.cwd.clone()),
            Step::Execute => {
                let failure = match errno {
                    Errno::ENOENT | Errno::ENOTDIR => ExecFailure::NotFound,
                    Errno::EACCES | Errno::EPERM => ExecFailure::PermissionDenied,
                    Errno::ENOEXEC | Errno::EISDIR | Errno::ELIBBAD => ExecFailure::NotExecutable,
                    Errno::E2BIG => ExecFailure::BadArgs,
                    _ => by_errno,
                };
                (failure, self.names.program.clone())
            }
        };
        ExecFailed { failure, errno: errno as i32, object }
    }
}

/// One environment: the sandbox's, the command's over it, and what login programs set where neither
/// says anything. The agent's own file gets none at all.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    variables: Vec<(String, Vec<u8>)>,
    /// What the user's entry says is added.
    of_login: bool,
}

impl Environment {
    fn new(
        defaults: &ExecDefaults,
        own: Vec<(String, String)>,
        on_terminal: bool,
    ) -> Result<Self, ExecFailed> {
        let mut env = Self { variables: Vec::new(), of_login: true };
        for (name, value) in defaults.env.iter().cloned().chain(own) {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(bad_args("environment"));
            }
            match env.variables.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value.into_bytes(),
                None => env.variables.push((name, value.into_bytes())),
            }
        }
        env.add("PATH", DEFAULT_PATH.as_bytes());
        if on_terminal {
            env.add("TERM", DEFAULT_TERM.as_bytes());
        }
        Ok(env)
    }

    /// The environment of a command that runs as `user`, as `execve` takes it.
    ///
    /// # Errors
    /// `EINVAL`: the user's entry has a NUL byte.
    pub(crate) fn of(&self, user: &User) -> Result<CStrings, Errno> {
        let mut env = Self { variables: self.variables.clone(), of_login: false };
        if self.of_login {
            env.add("HOME", &user.home);
        }
        if let Some(name) = user.name.as_ref().filter(|_| self.of_login) {
            env.add("USER", name);
            env.add("LOGNAME", name);
            env.add("SHELL", &user.shell);
        }
        let entry = |(name, mut value): (String, Vec<u8>)| {
            let mut entry = name.into_bytes();
            entry.push(b'=');
            entry.append(&mut value);
            CString::new(entry).map_err(|_| Errno::EINVAL)
        };
        let entries = env.variables.into_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(CStrings::new(entries))
    }

    fn value(&self, name: &str) -> Option<&[u8]> {
        let found = self.variables.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        if self.value(name).is_none() {
            self.variables.push((name.to_owned(), value.to_vec()));
        }
    }
}

/// The paths `name` may mean, as `execvp(3)` looks for it.
fn candidates(name: &str, path: &[u8]) -> Result<Candidates, ExecFailed> {
    if name.is_empty() {
        return Err(bad_args("program name"));
    }
    if name.contains('/') {
        return Ok(Candidates::Paths(vec![c_string(name, "program name")?]));
    }
    let joined = path.split(|byte| *byte == b':').map(|directory| {
        let mut full = directory.to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(name.as_bytes());
        CString::new(full).map_err(|_| bad_args("program name"))
    });
    Ok(Candidates::Paths(joined.collect::<Result<_, _>>()?))
}

fn rlimit(limit: &Rlimit) -> Result<(c_int, libc::rlimit64), ExecFailed> {
    let object = || format!("{:?}", limit.resource);
    if limit.resource == RlimitResource::Unknown || limit.soft > limit.hard {
        let errno = Errno::EINVAL as i32;
        return Err(ExecFailed { failure: ExecFailure::ResourceLimit, errno, object: object() });
    }
    let number = c_int::from(u8::from(limit.resource));
    Ok((number, libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard }))
}

fn c_string(text: &str, what: &str) -> Result<CString, ExecFailed> {
    CString::new(text).map_err(|_| bad_args(what))
}

/// A nul byte, an empty name, an equals sign where none may be.
pub(crate) fn bad_args(what: &str) -> ExecFailed {
    ExecFailed {
        failure: ExecFailure::BadArgs,
        errno: Errno::EINVAL as i32,
        object: what.to_owned(),
    }
}
