//! The agent as a process: real commands over a real socket, in the role `serve`.
//!
//! What needs a machine around it (mounts, cgroups, power off) is tested by booting one.

mod commands;
mod host;
mod life;
mod output;
mod stdin;
mod terminal;
