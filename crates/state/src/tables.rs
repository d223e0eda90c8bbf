//! Typed tables with a journal: every change can be undone, and indexes follow every change.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{
    AppId, BuildId, CellId, DeliveryId, DeploymentId, InstanceId, JobId, KeyId, ProcessId,
    ProjectId, RunnerId, TaskId, Time, TokenId, VolumeId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::indexes::Indexes;
use crate::news::Journalist;
use crate::records::{
    App, Build, Cell, Delivery, Deployment, Instance, Job, Key, Process, Project, Runner, Signing,
    Task, Token,
};
use crate::routes::Routes;
use crate::sweep::Swept;
use crate::volumes::Volume;

/// A row: it has an identifier, a table, and entries in indexes.
pub trait Row: Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    /// The type of its identifier.
    type Id: Copy + Ord + std::fmt::Display + 'static;
    /// Its identifier.
    fn id(&self) -> Self::Id;
    /// Its table.
    fn table(tables: &Tables) -> &BTreeMap<Self::Id, Arc<Self>>;
    #[doc(hidden)]
    fn table_mut(tables: &mut Tables) -> &mut BTreeMap<Self::Id, Arc<Self>>;
    #[doc(hidden)]
    fn before(id: Self::Id, old: Option<Arc<Self>>) -> Before;
    /// When something must happen to it.
    fn deadline(&self) -> Option<Time> {
        None
    }
    /// Its key in all tables.
    fn key(id: Self::Id) -> RowKey;
    /// Whether another version of it differs in what somebody who watches wants to know.
    fn differs(&self, other: &Self) -> bool {
        self != other
    }
    #[doc(hidden)]
    fn index(&self, _: &mut Indexes) {}
    #[doc(hidden)]
    fn unindex(&self, _: &mut Indexes) {}
}

macro_rules! tables {
    ($($field:ident $kind:literal $row:ident $id:ident { $($hooks:tt)* })*) => {
        /// All rows.
        #[derive(Debug, Clone, Default)]
        pub struct Tables {
            $(#[doc = concat!("Rows of kind `", $kind, "`.")]
            pub $field: BTreeMap<$id, Arc<$row>>,)*
        }

        /// Names one row of one table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RowKey {
            $(#[doc = concat!("A row of kind `", $kind, "`.")] $row($id),)*
        }

        /// What a row was before a change.
        #[doc(hidden)]
        #[derive(Debug)]
        pub enum Before {
            $($row($id, Option<Arc<$row>>),)*
        }

        /// A row of any table.
        #[derive(Debug, Clone)]
        pub enum AnyRow {
            $(#[doc = concat!("A row of kind `", $kind, "`.")] $row(Arc<$row>),)*
        }

        impl RowKey {
            /// Every kind of row, in the order in which they load.
            pub const KINDS: &'static [&'static str] = &[$($kind),*];

            /// The kind, as the store names it.
            pub const fn kind(self) -> &'static str {
                match self { $(Self::$row(_) => $kind,)* }
            }

            /// The identifier without its type.
            pub const fn raw(self) -> u128 {
                match self { $(Self::$row(id) => id.0,)* }
            }

            /// The identifier as people see it.
            pub fn id_text(self) -> String {
                match self { $(Self::$row(id) => id.to_string(),)* }
            }
        }

        impl Before {
            /// Whether somebody who watches wants to know of the change.
            pub(crate) fn is_news(&self, now: Option<&AnyRow>) -> bool {
                match (self, now) {
                    $((Self::$row(_, Some(old)), Some(AnyRow::$row(new))) => old.differs(new),)*
                    $((Self::$row(_, old), None) => old.is_some(),)*
                    (_, Some(_)) => true,
                }
            }

            pub(crate) const fn key(&self) -> RowKey {
                match self { $(Self::$row(id, _) => RowKey::$row(*id),)* }
            }
        }

        impl Core {
            pub(crate) fn undo(&mut self, before: Before) {
                match before { $(Before::$row(id, old) => { self.replace::<$row>(id, old); })* }
            }

            /// A row as it is now.
            pub(crate) fn any(&self, key: RowKey) -> Option<AnyRow> {
                match key {
                    $(RowKey::$row(id) => self.tables.$field.get(&id).cloned().map(AnyRow::$row),)*
                }
            }

            pub(crate) fn body(&self, key: RowKey) -> Result<Option<Vec<u8>>, serde_json::Error> {
                match key {
                    $(RowKey::$row(id) => {
                        self.tables.$field.get(&id).map(|row| serde_json::to_vec(&**row)).transpose()
                    })*
                }
            }

            /// Puts a row from the store back; `Ok(false)` when the kind is unknown.
            pub(crate) fn load(&mut self, kind: &str, body: &[u8]) -> Result<bool, serde_json::Error> {
                match kind {
                    $($kind => {
                        let row: $row = serde_json::from_slice(body)?;
                        let key = RowKey::$row(row.id);
                        self.replace::<$row>(row.id, Some(Arc::new(row)));
                        if self.has_ended(key) {
                            self.changed.push(key);
                        }
                    })*
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }

        $(impl Row for $row {
            type Id = $id;
            fn id(&self) -> $id { self.id }
            fn table(tables: &Tables) -> &BTreeMap<$id, Arc<Self>> { &tables.$field }
            fn table_mut(tables: &mut Tables) -> &mut BTreeMap<$id, Arc<Self>> { &mut tables.$field }
            fn before(id: $id, old: Option<Arc<Self>>) -> Before { Before::$row(id, old) }
            fn key(id: $id) -> RowKey { RowKey::$row(id) }
            $($hooks)*
        })*
    };
}

tables! {
    projects "project" Project ProjectId {
        fn index(&self, indexes: &mut Indexes) { indexes.add_project(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_project(self); }
    }
    apps "app" App AppId {
        fn index(&self, indexes: &mut Indexes) { indexes.add_app(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_app(self); }
    }
    tokens "token" Token TokenId {}
    keys "key" Key KeyId {
        fn index(&self, indexes: &mut Indexes) { indexes.add_key(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_key(self); }
    }
    runners "runner" Runner RunnerId {}
    cells "cell" Cell CellId {
        fn deadline(&self) -> Option<Time> { self.next_deadline() }
        fn differs(&self, other: &Self) -> bool { self.renewed(other) != *other }
        fn index(&self, indexes: &mut Indexes) { indexes.add_cell(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_cell(self); }
    }
    jobs "job" Job JobId {
        fn deadline(&self) -> Option<Time> { self.next_deadline() }
        fn differs(&self, other: &Self) -> bool { self.renewed(other) != *other }
        fn index(&self, indexes: &mut Indexes) { indexes.add_job(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_job(self); }
    }
    tasks "task" Task TaskId {
        fn deadline(&self) -> Option<Time> { self.next_deadline() }
        fn index(&self, indexes: &mut Indexes) { indexes.add_task(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_task(self); }
    }
    deliveries "delivery" Delivery DeliveryId {
        fn index(&self, indexes: &mut Indexes) { indexes.add_delivery(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_delivery(self); }
    }
    signings "signing" Signing ProjectId {
        fn deadline(&self) -> Option<Time> { self.before.as_ref().map(|it| it.until) }
    }
    builds "build" Build BuildId {
        fn index(&self, indexes: &mut Indexes) { indexes.add_build(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_build(self); }
    }
    processes "process" Process ProcessId {
        fn index(&self, indexes: &mut Indexes) { indexes.add_process(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_process(self); }
    }
    deployments "deployment" Deployment DeploymentId {
        fn deadline(&self) -> Option<Time> { self.next_deadline() }
        fn index(&self, indexes: &mut Indexes) { indexes.add_deployment(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_deployment(self); }
    }
    instances "instance" Instance InstanceId {
        fn deadline(&self) -> Option<Time> { self.next_deadline() }
        fn index(&self, indexes: &mut Indexes) { indexes.add_instance(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_instance(self); }
    }
    volumes "volume" Volume VolumeId {
        fn deadline(&self) -> Option<Time> { self.next_deadline() }
        fn index(&self, indexes: &mut Indexes) { indexes.add_volume(self); }
        fn unindex(&self, indexes: &mut Indexes) { indexes.remove_volume(self); }
    }
}

/// Tables, indexes and the journal of the command being applied.
#[derive(Debug, Default)]
pub(crate) struct Core {
    pub(crate) tables: Tables,
    pub(crate) indexes: Indexes,
    pub(crate) routes: Routes,
    /// Where the next sweep goes on.
    pub(crate) swept: Swept,
    pub(crate) journal: Vec<Before>,
    pub(crate) changed: Vec<RowKey>,
    pub(crate) journalist: Journalist,
    /// Lines of the audit log that the store has not been given yet.
    pub(crate) audited: Vec<crate::Audit>,
    /// Tasks whose messages come too late.
    #[cfg(feature = "planted")]
    pub(crate) late: Vec<TaskId>,
}

impl Core {
    pub(crate) fn get<R: Row>(&self, id: R::Id) -> Option<&Arc<R>> {
        R::table(&self.tables).get(&id)
    }

    pub(crate) fn put<R: Row>(&mut self, row: R) {
        let id = row.id();
        let old = self.replace(id, Some(Arc::new(row)));
        self.journal.push(R::before(id, old));
    }

    pub(crate) fn delete<R: Row>(&mut self, id: R::Id) {
        self.note_gone(R::key(id));
        let old = self.replace::<R>(id, None);
        self.journal.push(R::before(id, old));
    }

    /// Puts a row that differs from the one that is there in its lease only: nothing but its
    /// deadline follows from that.
    pub(crate) fn renew<R: Row>(&mut self, row: R) {
        let id = row.id();
        let old = self.swap(id, Some(Arc::new(row)));
        self.journal.push(R::before(id, old));
    }

    pub(crate) fn replace<R: Row>(&mut self, id: R::Id, new: Option<Arc<R>>) -> Option<Arc<R>> {
        let old = self.swap(id, new.clone());
        if let Some(row) = &old {
            row.unindex(&mut self.indexes);
        }
        if let Some(row) = new {
            row.index(&mut self.indexes);
        }
        old
    }

    fn swap<R: Row>(&mut self, id: R::Id, new: Option<Arc<R>>) -> Option<Arc<R>> {
        let Self { tables, indexes, .. } = self;
        let table = R::table_mut(tables);
        let is = new.as_ref().and_then(|row| row.deadline());
        let old = match new {
            Some(row) => table.insert(id, row),
            None => table.remove(&id),
        };
        let was = old.as_ref().and_then(|row| row.deadline());
        if was != is {
            if let Some(at) = was {
                indexes.deadlines.remove(&(at, R::key(id)));
            }
            if let Some(at) = is {
                indexes.deadlines.insert((at, R::key(id)));
            }
        }
        old
    }

    /// Takes back what was changed since the last [`Self::keep`].
    pub(crate) fn roll_back(&mut self) {
        while let Some(before) = self.journal.pop() {
            self.undo(before);
        }
        if let Some(placing) = &mut self.indexes.placing {
            placing.settled();
        }
        self.forget_gone();
    }

    /// The rows changed since the last call, each once, in a fixed order.
    pub(crate) fn take_changed(&mut self) -> Vec<RowKey> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}
