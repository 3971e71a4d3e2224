//! What `run` and `create` take to define a sandbox.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use microsandbox::{
    BootMode, Mebibytes, PullPolicy, Sandbox, SandboxBuilder, SandboxConfig, Snapshot,
};

use crate::values::{self, Variable};

/// What a new sandbox begins with, and the options that define it.
#[derive(Debug, Args)]
pub(crate) struct Definition {
    /// Image, as Docker names it: python, debian:12, 127.0.0.1:5000/team/app
    #[arg(required_unless_present = "from_snapshot")]
    image: Option<String>,
    /// Begin with a snapshot instead, which says the image: a name, an id or a path
    #[arg(long, value_name = "SNAPSHOT")]
    from_snapshot: Option<String>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Options that define a sandbox.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Set a variable for every command; NAME alone takes msb's own value
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = values::variable)]
    env: Vec<Variable>,
    /// Working directory of every command [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User of every command: name, uid, user:group or uid:gid [default: the image's]
    #[arg(short, long)]
    user: Option<String>,
    /// Virtual processors [default: 1, or the snapshot's]
    #[arg(long)]
    cpus: Option<u8>,
    /// Memory: a number of MiB, or one with a unit, such as 2G [default: 512M, or the snapshot's]
    #[arg(long, value_parser = values::memory)]
    memory: Option<Mebibytes>,
    /// Size of the writable disk, which takes only what is written to it [default: 4G, or the
    /// snapshot's]
    #[arg(long, value_parser = values::memory)]
    disk: Option<Mebibytes>,
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
    /// Take the name from a sandbox that has it, which is stopped and removed
    #[arg(long)]
    replace: bool,
    /// As --replace, with the time that sandbox gets to end in order; 0s kills it at once
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    replace_with_timeout: Option<Duration>,
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
        match (self.image, self.from_snapshot) {
            (Some(_), Some(_)) => bail!("a snapshot says itself which image it needs"),
            (None, Some(snapshot)) => self.options.restoring(&snapshot, name, ephemeral),
            (image, None) => {
                let builder = Sandbox::builder(name).image(image.unwrap_or_default());
                self.options.apply(builder, ephemeral)
            }
        }
    }

    /// Takes the word that stands where an image would for the first of the command, where a snapshot
    /// takes the image's place.
    pub(crate) fn give_back_word(&mut self, command: &mut Vec<String>) {
        if self.from_snapshot.is_some() {
            command.splice(0..0, self.image.take());
        }
    }
}

impl Options {
    /// The definition of a sandbox that begins with a snapshot, checked.
    pub(crate) fn restoring(
        self,
        snapshot: &str,
        name: &str,
        ephemeral: bool,
    ) -> anyhow::Result<SandboxConfig> {
        let found = Snapshot::open(snapshot)?;
        let is_other_machine = self.cpus.is_some_and(|cpus| cpus != found.cpus())
            || self.memory.is_some_and(|memory| memory.0 != found.memory_mib());
        if found.is_full() && is_other_machine {
            bail!("a machine that goes on keeps its processors and its memory");
        }
        let builder = Sandbox::builder(name)
            .from_snapshot(snapshot)
            .cpus(found.cpus())
            .memory(found.memory_mib());
        self.apply(builder, ephemeral)
    }

    fn apply(self, builder: SandboxBuilder, ephemeral: bool) -> anyhow::Result<SandboxConfig> {
        let mut builder = builder
            .envs(self.env.into_iter().filter_map(Variable::resolve))
            .labels(self.label)
            .pull_policy(self.pull.into())
            .ephemeral(ephemeral);
        if let Some(cpus) = self.cpus {
            builder = builder.cpus(cpus);
        }
        if let Some(memory) = self.memory {
            builder = builder.memory(memory);
        }
        if let Some(disk) = self.disk {
            builder = builder.oci_upper_size(disk);
        }
        if self.replace {
            builder = builder.replace();
        }
        if let Some(time) = self.replace_with_timeout {
            builder = builder.replace_with_timeout(time);
        }
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
