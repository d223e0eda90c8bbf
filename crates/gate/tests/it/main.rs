//! Real gates, in processes of their own, and routers that connect through them.

mod bounds;
mod life;
mod proof;
mod support;
