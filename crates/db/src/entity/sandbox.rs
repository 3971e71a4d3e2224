//! Table `sandbox`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "sandbox")]
pub(crate) struct Model {
    #[sea_orm(primary_key)]
    pub(crate) id: i64,
    #[sea_orm(unique)]
    pub(crate) name: String,
    pub(crate) config_json: String,
    pub(crate) ephemeral: bool,
    pub(crate) manifest_digest: Option<String>,
    pub(crate) created_at_ms: i64,
    pub(crate) updated_at_ms: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {
    #[sea_orm(has_many = "super::sandbox_label::Entity")]
    SandboxLabel,
}

impl Related<super::sandbox_label::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::SandboxLabel.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
