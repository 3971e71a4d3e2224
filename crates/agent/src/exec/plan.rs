//! From a request to everything `execve` needs, or to a typed refusal. Nothing is started here.

use std::ffi::{CStr, CString};
use std::path::Path;

use libc::c_int;
use microsandbox_protocol::{
    Exec, ExecDefaults, ExecFailed, ExecFailure, Program, Rlimit, RlimitResource,
};
use nix::errno::Errno;

use crate::sys::clone::{CStrings, Identity, SpawnFailed, Step};
use crate::users::{Accounts, User};

/// `PATH` of a command whose sandbox has none: Debian's for root, which every distribution fits in.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `TERM` of a command on a terminal: every distribution's database has it, as Docker relies on.
const DEFAULT_TERM: &str = "xterm";

/// What the agent's own file is called among processes.
const AGENT: &str = "agentd";

/// User of a command whose sandbox names none.
const DEFAULT_USER: &str = "root";

/// A command, ready to start.
#[derive(Debug)]
pub(crate) struct Plan {
    pub program: Candidates,
    pub args: CStrings,
    pub env: CStrings,
    pub cwd: CString,
    pub user: User,
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

#[derive(Debug)]
struct Names {
    program: String,
    cwd: String,
    user: String,
    rlimits: Vec<RlimitResource>,
}

impl Plan {
    /// Lays `exec` over `defaults`, with users from the files below `etc`.
    ///
    /// # Errors
    /// What was wrong, as it is told to the client.
    pub(crate) fn new(exec: Exec, defaults: &ExecDefaults, etc: &Path) -> Result<Self, ExecFailed> {
        let user_spec = exec.user.or_else(|| defaults.user.clone());
        let user_spec = user_spec.unwrap_or_else(|| DEFAULT_USER.to_owned());
        let user = find_user(&user_spec, &Accounts::read(etc))?;
        let env = environment(defaults, exec.env, &user, exec.terminal.is_some())?;
        let cwd = exec.cwd.or_else(|| defaults.cwd.clone()).unwrap_or_else(|| "/".to_owned());
        let (name, program) = match exec.program {
            Program::Path(name) => {
                let path = variable(&env, "PATH").unwrap_or_default();
                let candidates = candidates(&name, path)?;
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
        let env = env.into_iter().map(|(name, mut value)| {
            let mut entry = name.into_bytes();
            entry.push(b'=');
            entry.append(&mut value);
            CString::new(entry).map_err(|_| bad_args("environment"))
        });
        Ok(Self {
            program,
            args: CStrings::new(args),
            env: CStrings::new(env.collect::<Result<_, _>>()?),
            cwd: c_string(&cwd, "working directory")?,
            user,
            rlimits: exec.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?,
            names: Names {
                program: name,
                cwd,
                user: user_spec,
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
        let identity = Identity { uid: 0, gid: 0, groups: Vec::new() };
        let nowhere = || b"/".to_vec();
        Ok(Self {
            program: Candidates::Agent,
            args: CStrings::new(args),
            env: CStrings::new(Vec::new()),
            cwd: CString::from(c"/"),
            user: User { identity, name: None, home: nowhere(), shell: nowhere() },
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
    pub(crate) fn explain(&self, failed: SpawnFailed) -> ExecFailed {
        let SpawnFailed { step, errno } = failed;
        let by_errno = match errno {
            Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE => ExecFailure::ResourceLimit,
            Errno::ENOMEM => ExecFailure::OutOfMemory,
            _ => ExecFailure::Other,
        };
        let (failure, object) = match step {
            Step::Clone | Step::Session | Step::Stdio => (by_errno, self.names.program.clone()),
            Step::Terminal => (ExecFailure::Terminal, "terminal".to_owned()),
            Step::Limit(index) => {
                let name = self.names.rlimits.get(index);
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

fn find_user(spec: &str, accounts: &Accounts) -> Result<User, ExecFailed> {
    let missing = ExecFailed { failure: ExecFailure::BadUser, errno: 0, object: spec.to_owned() };
    accounts.find(spec).or_else(|_| match spec {
        // An image without any accounts still has a root.
        DEFAULT_USER => accounts.find("0").map_err(|_| missing),
        _ => Err(missing),
    })
}

/// One environment: the sandbox's, the command's over it, and what login programs set where neither
/// says anything.
fn environment(
    defaults: &ExecDefaults,
    own: Vec<(String, String)>,
    user: &User,
    on_terminal: bool,
) -> Result<Vec<(String, Vec<u8>)>, ExecFailed> {
    let mut env: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in defaults.env.iter().cloned().chain(own) {
        if name.is_empty() || name.contains('=') {
            return Err(bad_args("environment"));
        }
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value.into_bytes(),
            None => env.push((name, value.into_bytes())),
        }
    }
    let mut add = |name: &str, value: &[u8]| {
        if variable(&env, name).is_none() {
            env.push((name.to_owned(), value.to_vec()));
        }
    };
    add("PATH", DEFAULT_PATH.as_bytes());
    add("HOME", &user.home);
    if let Some(name) = &user.name {
        add("USER", name);
        add("LOGNAME", name);
        add("SHELL", &user.shell);
    }
    if on_terminal {
        add("TERM", DEFAULT_TERM.as_bytes());
    }
    Ok(env)
}

fn variable<'a>(env: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
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
