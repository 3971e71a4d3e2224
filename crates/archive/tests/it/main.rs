//! Trees there and back, judged by their manifests and by GNU tar; streams from enemies.

mod hostile;
mod trees;
