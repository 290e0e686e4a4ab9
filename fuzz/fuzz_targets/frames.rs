//! Bytes of a hostile broker, on their way to lapin.
#![no_main]

use customerio_sync::broker::repair_property::whatever_arrives_can_be_decoded;

libfuzzer_sys::fuzz_target!(|data: &[u8]| whatever_arrives_can_be_decoded(data));
