//! The command line, as clap sees it. What an option means is said here, what it does elsewhere.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Everything about this repository that is more than a `cargo build`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build the guest agent as a static program and pack it into an initramfs.
    Agent(AgentOptions),
    /// Measure: JSON lines and a table.
    Bench(BenchOptions),
    /// Formatting, clippy, documentation, dependency policy and the repository's own rules.
    Check,
    /// Feed the parsers of hostile bytes with mutations of their corpora.
    Fuzz(FuzzOptions),
    /// Build the guest kernel, once for each set of inputs.
    Kernel(KernelOptions),
    /// From a fresh checkout to the output of a command inside a microVM.
    Quickstart,
    /// Install msb and the guest into $MSB_HOME (default ~/.microsandbox).
    Setup(SetupOptions),
    /// Commands, lives and idleness for long: nothing may be left of them.
    Soak(SoakOptions),
    /// Run every test, booting guests included.
    Test(TestOptions),
    /// Check the rules of this repository that no other tool knows.
    Tidy,
}

/// Options of `agent`.
#[derive(Args, Debug, Default)]
pub(crate) struct AgentOptions {
    /// Target triple; default is musl for this machine's architecture.
    #[arg(long, value_name = "TRIPLE")]
    pub(crate) target: Option<String>,
}

/// Options of `kernel`.
#[derive(Args, Debug, Default)]
pub(crate) struct KernelOptions {
    /// A Linux source tree or .tar.xz to build instead of the one found by itself.
    #[arg(long, value_name = "PATH")]
    pub(crate) source: Option<PathBuf>,
    /// Ask for a newer source of the series even if one has been fetched before.
    #[arg(long)]
    pub(crate) update: bool,
    /// Another configuration fragment than guest/kernel.config.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Options of `setup`.
#[derive(Args, Debug, Default)]
pub(crate) struct SetupOptions {
    #[command(flatten)]
    pub(crate) kernel: KernelOptions,
}

/// Options of `test`.
#[derive(Args, Debug)]
pub(crate) struct TestOptions {
    /// Prepare guest and images only, and print the variables that let `cargo test` find them.
    #[arg(long)]
    pub(crate) prepare: bool,
    /// Arguments for `cargo test`, e.g. `-p microsandbox-image`; default is the workspace.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}

/// Options of `fuzz`.
#[derive(Args, Debug)]
pub(crate) struct FuzzOptions {
    /// Seconds for each target; as many targets run at once as there are cores.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Same seed, same inputs; default is another one each time.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// Options of `bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchOptions {
    #[command(subcommand)]
    pub(crate) scenario: Scenario,
    /// Append the results to this file as JSON lines.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Runs of each variant [default: 15; of `start`: 30].
    #[arg(short = 'n', long, global = true, value_name = "RUNS")]
    pub(crate) runs: Option<usize>,
}

/// Parts of the scenario `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StartPart {
    /// From `create()` to ready, step by step: cold and from templates, confined and not.
    Stages,
    /// To the first output of `echo` and of Python.
    Output,
    /// Eight at once.
    Together,
    /// Resident and unshared memory of 1, 4 and 8 sandboxes.
    Memory,
    /// Snapshots of running machines of several sizes, and restores from them.
    Snapshots,
    /// Forks with 1 and 4 children.
    Forks,
}

/// Options of `soak`.
#[derive(Args, Debug)]
pub(crate) struct SoakOptions {
    #[command(subcommand)]
    pub(crate) what: Soaked,
}

/// What to wear out.
#[derive(Debug, Subcommand)]
pub(crate) enum Soaked {
    /// Commands in one sandbox: COUNT in a row, and a fifth of that in 16 lanes, with clients killed.
    Exec {
        /// How many.
        #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
        count: usize,
    },
    /// Sandboxes that nobody uses: processor time, wake-ups and memory of each.
    Idle {
        /// How many.
        #[arg(long, value_name = "COUNT", default_value_t = 8)]
        sandboxes: usize,
        /// For how long.
        #[arg(long, value_name = "MINUTES", default_value_t = 10.0)]
        minutes: f64,
    },
    /// Sandboxes created, used, stopped and removed, two at a time.
    Life {
        /// How many.
        #[arg(long, value_name = "COUNT", default_value_t = 300)]
        count: usize,
    },
    /// Starts from each template of one image, in eight lanes: no two may be alike.
    Starts {
        /// How many, from each.
        #[arg(long, value_name = "COUNT", default_value_t = 200)]
        count: usize,
    },
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// Cold boot to ready through msb, beside raw QEMU with the same kernel and initramfs.
    Boot,
    /// Commands that only look, with a hundred sandboxes in the catalogue.
    Cli,
    /// Files between host and sandbox, beside tar through a command.
    Cp,
    /// The least that taking an image's layers costs; what `image` compares with.
    #[command(hide = true)]
    Floor {
        /// OCI layout of one image.
        layout: PathBuf,
        /// Folder for the unpacked layers.
        into: PathBuf,
    },
    /// Pull and load to a bootable disk, beside the floor, upstream's msb and umoci.
    Image,
    /// Commands in a running sandbox: round trips, streams beside the raw port, memory.
    Exec,
    /// Raw boot of several kernels in turn.
    Kernel {
        /// Kernels to compare; the first is the reference.
        #[arg(required = true, value_name = "VMLINUX")]
        kernels: Vec<PathBuf>,
    },
    /// Starts of every kind: steps, first output, memory, snapshots, forks; beside raw QEMU and gVisor.
    Start {
        /// Parts to measure; default is all.
        #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
        only: Vec<StartPart>,
    },
    /// Runs a program and writes what it took to a file; what `image` counts with.
    #[command(hide = true)]
    Measure {
        /// File for the count.
        report: PathBuf,
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}
