//! Progress of a pull or a load on standard error: bars on a terminal, else one line per finished
//! step. An image that is in the store already is not worth a word.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use microsandbox::{Progress, PullProgress};

use crate::{output, report};

/// How often a bar without news moves, so that it shows that there is life.
const TICK: Duration = Duration::from_millis(120);

/// Shows progress until it is dropped, and leaves no bar behind.
#[derive(Debug)]
pub(crate) struct PullView {
    style: Style,
}

#[derive(Debug)]
enum Style {
    Bars(MultiProgress, Mutex<BTreeMap<usize, ProgressBar>>),
    Lines(Mutex<usize>),
    Silent,
}

impl PullView {
    /// The view that suits standard error, or none.
    pub(crate) fn new(quiet: bool) -> Self {
        let style = if quiet {
            Style::Silent
        } else if io::stderr().is_terminal() {
            Style::Bars(MultiProgress::new(), Mutex::default())
        } else {
            Style::Lines(Mutex::default())
        };
        Self { style }
    }

    /// Shows one step.
    pub(crate) fn show(&self, event: &PullProgress) {
        match &self.style {
            Style::Bars(area, bars) => {
                let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
                show_bar(area, &mut bars, event);
            }
            Style::Lines(layer_count) => {
                let mut layer_count = layer_count.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(line) = line(&mut layer_count, event) {
                    report::note(line);
                }
            }
            Style::Silent => {}
        }
    }
}

impl Progress for PullView {
    fn report(&self, event: PullProgress) {
        self.show(&event);
    }
}

impl Drop for PullView {
    fn drop(&mut self) {
        if let Style::Bars(area, _) = &self.style {
            // A terminal that is gone needs no clearing.
            let _gone = area.clear();
        }
    }
}

/// What a step is worth in words, if anything. `layer_count` is what is known of the image so far.
fn line(layer_count: &mut usize, event: &PullProgress) -> Option<String> {
    match *event {
        PullProgress::Resolved { layer_count: count, .. } => {
            *layer_count = count;
            None
        }
        PullProgress::LayerDownloadComplete { layer_index, downloaded_bytes, .. } => {
            let layer = layer_name(layer_index, *layer_count);
            (downloaded_bytes > 0)
                .then(|| format!("{layer}: downloaded {}", output::size(downloaded_bytes)))
        }
        PullProgress::LayerMaterializeComplete { layer_index, .. } => {
            Some(format!("{}: ready", layer_name(layer_index, *layer_count)))
        }
        _ => None,
    }
}

fn layer_name(index: usize, count: usize) -> String {
    match count {
        0 => format!("layer {}", index + 1),
        count => format!("layer {} of {count}", index + 1),
    }
}

fn show_bar(area: &MultiProgress, bars: &mut BTreeMap<usize, ProgressBar>, event: &PullProgress) {
    let mut bar = |index: usize| {
        let make = || area.add(new_bar(&layer_name(index, 0)));
        bars.entry(index).or_insert_with(make).clone()
    };
    match *event {
        PullProgress::LayerDownloadProgress {
            layer_index, downloaded_bytes, total_bytes, ..
        } => {
            let bar = bar(layer_index);
            if let Some(total) = total_bytes {
                bar.set_length(total);
            }
            bar.set_position(downloaded_bytes);
        }
        PullProgress::LayerDownloadComplete { layer_index, downloaded_bytes: 0, .. } => {
            bar(layer_index).finish_with_message("already here");
        }
        PullProgress::LayerMaterializeStarted { layer_index, .. } => {
            bar(layer_index).enable_steady_tick(TICK);
        }
        PullProgress::LayerMaterializeComplete { layer_index, .. } => {
            bar(layer_index).finish_with_message("ready");
        }
        _ => {}
    }
}

fn new_bar(name: &str) -> ProgressBar {
    let style = "{prefix:<9} {bar:30} {bytes:>10} / {total_bytes:<10} {spinner} {msg}";
    let style = ProgressStyle::with_template(style).expect("the template is a constant");
    ProgressBar::no_length().with_style(style).with_prefix(name.to_owned())
}
