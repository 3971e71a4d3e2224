//! Choosing sandboxes.

/// Which sandboxes to list; a new one chooses all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct SandboxFilter {
    labels: Vec<(String, String)>,
}

impl SandboxFilter {
    /// Chooses all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses only those with this label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Chooses only those with all these labels.
    pub fn labels(
        mut self,
        labels: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.labels.extend(labels.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Whether it chooses all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    pub(crate) fn into_query(self) -> microsandbox_db::SandboxFilter {
        microsandbox_db::SandboxFilter { labels: self.labels }
    }
}
