//! Scenario `start`: from `create()` to ready, step by step, cold and from a template, with the VMM
//! confined and not.
//!
//! Each sample is a new sandbox of a cached image; the steps are those of its run record, each from
//! the end of the one before. What `msb` itself takes around them is not in it.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    home::{BenchHome, IMAGE},
    report::Report,
};
use crate::terminal;

const SANDBOX: &str = "bench-start";

/// Ways to start, with the variables that choose them.
const WAYS: [(&str, &[(&str, &str)]); 3] = [
    ("cold", &[("MSB_BOOT", "cold")]),
    ("cold unconfined", &[("MSB_BOOT", "cold"), ("MSB_CONFINEMENT", "off")]),
    ("template", &[("MSB_BOOT", "template")]),
];

/// Steps as the run record names them, in their order.
const STEPS: [&str; 11] = [
    "found_us",
    "image_us",
    "catalogue_us",
    "disk_us",
    "launch_us",
    "supervisor_us",
    "vmm_us",
    "exec_us",
    "hello_us",
    "agent_ready_us",
    "ready_us",
];

/// The step that ends our own work before the VMM's first instruction.
const EXEC: &str = "exec_us";

/// Every way, `runs` times in turn; one report for each.
pub(super) fn run(runs: usize) -> Result<Vec<Report>> {
    let home = BenchHome::prepare()?;
    // What a run that was cut off left behind.
    home.msb().args(["rm", "-f", SANDBOX]).succeeds()?;
    let mut reports: Vec<Report> = WAYS
        .iter()
        .map(|(way, _)| Report::new(format!("start {way}"), "ms", home.kernel.clone()))
        .collect();
    // What the first start of a home makes for the ones after it: probe, template.
    let first = start(&home, &[])?;
    if first["last_run"]["origin"]["kind"] == "cold" {
        terminal::note("the template is being built; starts from it begin when it is there");
    }
    terminal::step(format_args!(
        "Starting {runs} times each: {}",
        WAYS.map(|(way, _)| way).join(", ")
    ));
    for _ in 0..runs {
        for ((way, variables), report) in WAYS.iter().zip(&mut reports) {
            let inspected = start(&home, variables)?;
            note(&inspected["last_run"]["boot"], report).with_context(|| format!("start {way}"))?;
        }
    }
    Ok(reports)
}

/// Creates the sandbox, takes what is told of it, and removes it.
fn start(home: &BenchHome, variables: &[(&str, &str)]) -> Result<Value> {
    let mut create = home.msb().args(["create", "-q", "--name", SANDBOX, IMAGE]);
    for (name, value) in variables {
        create = create.env(name, value);
    }
    create.output()?;
    let told = home.msb().args(["inspect", SANDBOX]).output()?;
    home.msb().args(["rm", "-f", SANDBOX]).output()?;
    serde_json::from_str(&told).context("read what msb inspect tells")
}

fn note(times: &Value, report: &mut Report) -> Result<()> {
    let mut before = 0.0;
    for step in STEPS {
        let at = times[step].as_f64().with_context(|| format!("{step} in {times}"))? / 1e3;
        // A step that there was not.
        if at > 0.0 {
            report.add(step.trim_end_matches("_us"), at - before);
            before = at;
        }
        if step == EXEC && at > 0.0 {
            report.add("create to the VMM's exec", at);
        }
    }
    report.add("create to ready", before);
    Ok(())
}
