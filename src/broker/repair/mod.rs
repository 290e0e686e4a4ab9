//! Repairs messages whose properties lapin can't decode, before lapin reads them.
//!
//! A publisher may set properties that are not valid: a short string that is not UTF-8, headers
//! nested thousands deep, a field of an unknown type. RabbitMQ passes most of them on unread. lapin
//! ends the connection at the first kind, with everything that it consumes, and exhausts its stack
//! at the second. So the bytes from RabbitMQ pass through a [`RepairedStream`], which replaces what
//! can't be decoded by U+FFFD or leaves it out, and adds the header `x-repaired`, which names it.
//! Everything else passes through unchanged.
//!
//! The formats are those of AMQP 0-9-1, sections 2.3.5 (frames), 4.2.5 (field tables) and 4.2.6
//! (content), with the field types that RabbitMQ uses
//! (<https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>). This file can be deleted when lapin
//! delivers such messages itself.

mod content;
#[cfg(any(test, fuzzing))]
pub mod property;
mod runtime;
mod stream;

pub(super) use runtime::repairing_runtime;
pub(super) use stream::RepairedStream;
