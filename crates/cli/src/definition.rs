//! What `run` and `create` take to define a sandbox.

use clap::{Args, ValueEnum};
use microsandbox::{BootMode, Mebibytes, PullPolicy, Sandbox, SandboxConfig};

use crate::values::{self, Variable};

/// Options that define a sandbox.
#[derive(Debug, Args)]
pub(crate) struct Definition {
    /// Image, as Docker names it: python, debian:12, 127.0.0.1:5000/team/app
    image: String,
    /// Set a variable for every command; NAME alone takes msb's own value
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = values::variable)]
    env: Vec<Variable>,
    /// Working directory of every command [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User of every command: name, uid, user:group or uid:gid [default: the image's]
    #[arg(short, long)]
    user: Option<String>,
    /// Virtual processors
    #[arg(long, default_value_t = 1)]
    cpus: u8,
    /// Memory: a number of MiB, or one with a unit, such as 2G
    #[arg(long, default_value = "512M", value_parser = values::memory)]
    memory: Mebibytes,
    /// Size of the writable disk, which takes only what is written to it
    #[arg(long, default_value = "4G", value_parser = values::memory)]
    disk: Mebibytes,
    /// Stop it when nothing has been under way in it for this time, such as 10m
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    idle_timeout: Option<u64>,
    /// Stop it when it has run for this time, such as 2h
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    max_duration: Option<u64>,
    /// Boot it from the beginning, not from a template of its machine
    #[arg(long)]
    cold: bool,
    /// Host name [default: the sandbox's name]
    #[arg(long)]
    hostname: Option<String>,
    /// Program that commands begin with, instead of the image's; "" for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Add a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    label: Vec<(String, String)>,
    /// When to ask the registry for the image
    #[arg(long, value_enum, default_value_t = Pull::IfMissing)]
    pull: Pull,
    /// Show no progress and no notes
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// When to ask a registry for an image.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Pull {
    /// Every time
    Always,
    /// When it is not in the store
    IfMissing,
    /// Not at all
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => Self::Always,
            Pull::IfMissing => Self::IfMissing,
            Pull::Never => Self::Never,
        }
    }
}

impl Definition {
    /// The definition of a sandbox of that name, checked.
    pub(crate) fn into_config(self, name: &str, ephemeral: bool) -> anyhow::Result<SandboxConfig> {
        let mut builder = Sandbox::builder(name)
            .image(self.image)
            .cpus(self.cpus)
            .memory(self.memory)
            .oci_upper_size(self.disk)
            .envs(self.env.into_iter().filter_map(Variable::resolve))
            .labels(self.label)
            .pull_policy(self.pull.into())
            .ephemeral(ephemeral);
        if let Some(workdir) = self.workdir {
            builder = builder.workdir(workdir);
        }
        if let Some(user) = self.user {
            builder = builder.user(user);
        }
        if let Some(seconds) = self.idle_timeout {
            builder = builder.idle_timeout(seconds);
        }
        if let Some(seconds) = self.max_duration {
            builder = builder.max_duration(seconds);
        }
        if self.cold {
            builder = builder.boot(BootMode::Cold);
        }
        if let Some(hostname) = self.hostname {
            builder = builder.hostname(hostname);
        }
        if let Some(entrypoint) = self.entrypoint {
            builder = builder.entrypoint(Some(entrypoint).filter(|program| !program.is_empty()));
        }
        Ok(builder.build()?)
    }
}
