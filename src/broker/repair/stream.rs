//! The stream between RabbitMQ and lapin.

use std::{
    collections::HashSet,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{AsyncRead, AsyncWrite};

use super::content::{repair_content, repair_method};

/// Bytes before the payload of a frame: type, channel and size of the payload.
const HEAD_BYTES: usize = 7;
/// Bytes of a frame besides its payload: the head, and the octet that ends it.
const OVERHEAD_BYTES: usize = HEAD_BYTES + 1;
/// The types of frames that can contain what lapin can't decode.
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
/// Maximum payload of a frame that is examined. RabbitMQ sends frames of up to 128 KiB by default
/// (`frame_max`), and lapin refuses larger ones than it negotiated.
const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 32 * 1024;

/// Finds the frames in a stream of bytes, and repairs them.
#[derive(Debug)]
pub(super) struct FrameRepairer {
    /// The start of a frame that is not complete.
    pending: Vec<u8>,
    /// Bytes of the current frame that pass through unread.
    passing: usize,
    /// Channels whose last method frame was repaired.
    repaired_methods: HashSet<[u8; 2]>,
    /// Maximum payload after a repair.
    payload_bytes_max: usize,
}

impl FrameRepairer {
    /// Repaired frames have at most `frame_bytes_max` bytes.
    pub(super) fn new(frame_bytes_max: usize) -> Self {
        Self {
            pending: Vec::new(),
            passing: 0,
            repaired_methods: HashSet::new(),
            payload_bytes_max: frame_bytes_max.saturating_sub(OVERHEAD_BYTES),
        }
    }

    /// Takes the next bytes, and appends what lapin may read to `ready`.
    pub(super) fn feed(&mut self, mut bytes: &[u8], ready: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (passed, rest) = bytes.split_at(self.passing.min(bytes.len()));
                ready.extend_from_slice(passed);
                self.passing -= passed.len();
                bytes = rest;
                continue;
            }
            let missing = self.frame_bytes().saturating_sub(self.pending.len());
            let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
            self.pending.extend_from_slice(taken);
            bytes = rest;
            self.pass_on(ready);
        }
    }

    /// The bytes that are needed of the current frame: its head, or all of it.
    fn frame_bytes(&self) -> usize {
        match self.head() {
            Some((_, size)) => size + OVERHEAD_BYTES,
            None => HEAD_BYTES,
        }
    }

    /// Type and payload size of the current frame, if they are known.
    fn head(&self) -> Option<(u8, usize)> {
        let [kind, _, _, size @ ..] = *self.pending.first_chunk::<HEAD_BYTES>()?;
        Some((kind, usize::try_from(u32::from_be_bytes(size)).ok()?))
    }

    /// Passes on what is known of the current frame.
    fn pass_on(&mut self, ready: &mut Vec<u8>) {
        let Some((kind, size)) = self.head() else { return };
        let is_examined = matches!(kind, METHOD | CONTENT_HEADER) && size <= PAYLOAD_BYTES_MAX;
        if !is_examined {
            // A body, a heartbeat, or no frame at all: lapin reports what is wrong with it.
            self.passing = size + OVERHEAD_BYTES - self.pending.len();
            ready.append(&mut self.pending);
        } else if self.pending.len() == size + OVERHEAD_BYTES {
            self.repair(kind, ready);
            self.pending.clear();
        }
    }

    /// Appends the current frame, which is complete.
    fn repair(&mut self, kind: u8, ready: &mut Vec<u8>) {
        let channel = [self.pending[1], self.pending[2]];
        let payload = &self.pending[HEAD_BYTES..self.pending.len() - 1];
        let repaired = if kind == METHOD {
            let repaired = repair_method(payload);
            if repaired.is_some() {
                self.repaired_methods.insert(channel);
            } else {
                self.repaired_methods.remove(&channel);
            }
            repaired
        } else {
            let already = self.repaired_methods.remove(&channel).then_some("routing_key");
            repair_content(payload, already, self.payload_bytes_max)
        };
        let Some(repaired) = repaired else {
            ready.extend_from_slice(&self.pending);
            return;
        };
        let size = u32::try_from(repaired.len()).expect("a frame is smaller than 4 GiB");
        ready.extend_from_slice(&self.pending[..3]);
        ready.extend_from_slice(&size.to_be_bytes());
        ready.extend_from_slice(&repaired);
        ready.extend_from_slice(&self.pending[self.pending.len() - 1..]);
    }
}

/// A connection to RabbitMQ whose incoming frames are repaired.
#[derive(Debug)]
pub(in crate::broker) struct RepairedStream<S> {
    stream: S,
    frames: FrameRepairer,
    chunk: Vec<u8>,
    /// Bytes for lapin, and how many of them it has read.
    ready: Vec<u8>,
    read: usize,
}

impl<S> RepairedStream<S> {
    pub(in crate::broker) fn new(stream: S, frame_bytes_max: usize) -> Self {
        Self {
            stream,
            frames: FrameRepairer::new(frame_bytes_max),
            chunk: vec![0; CHUNK_BYTES],
            ready: Vec::new(),
            read: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RepairedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.read == this.ready.len() {
            this.ready.clear();
            this.read = 0;
            let size = ready!(Pin::new(&mut this.stream).poll_read(context, &mut this.chunk))?;
            if size == 0 {
                return Poll::Ready(Ok(0));
            }
            this.frames.feed(&this.chunk[..size], &mut this.ready);
        }
        let rest = &this.ready[this.read..];
        let size = rest.len().min(buffer.len());
        buffer[..size].copy_from_slice(&rest[..size]);
        this.read += size;
        Poll::Ready(Ok(size))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RepairedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::property, *};

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).expect("small");
        [&[kind, 0, 1], &size.to_be_bytes()[..], payload, &[0xce]].concat()
    }

    proptest! {
        /// However the bytes arrive, frames without a defect pass through unchanged.
        #[test]
        fn valid_frames_pass_through(
            payloads in prop::collection::vec((1_u8..9, any::<Vec<u8>>()), 0..8),
            cut in 1_usize..40,
        ) {
            // Bodies, and methods of another class than `basic`.
            let frames = payloads.iter().map(|(kind, payload)| match kind {
                1 | 2 => frame(*kind, &[&[0, 10], &payload[..]].concat()),
                _ => frame(*kind, payload),
            });
            let sent: Vec<u8> = frames.flatten().collect();
            let (mut repairer, mut received) = (FrameRepairer::new(131_072), Vec::new());
            for part in sent.chunks(cut) {
                repairer.feed(part, &mut received);
            }
            prop_assert_eq!(sent, received);
        }
    }

    proptest! {
        #[test]
        fn lapin_decodes_whatever_arrives(bytes in any::<Vec<u8>>(), flags in any::<u16>()) {
            let head = [&[0, 60], &[0; 10][..], &flags.to_be_bytes()].concat();
            let content = frame(2, &[&head[..], &bytes].concat());
            property::whatever_arrives_can_be_decoded(&content);
            property::whatever_arrives_can_be_decoded(&[&content[..], &bytes].concat());
        }
    }

    #[test]
    fn a_frame_is_repaired_however_it_is_split() {
        let properties = [&[0, 60], &[0; 10][..], &[0, 8], &[1, 0xff]].concat();
        let sent = [frame(2, &properties), frame(3, b"body")].concat();
        let repaired = |cut: usize| {
            let (mut repairer, mut received) = (FrameRepairer::new(131_072), Vec::new());
            sent.chunks(cut).for_each(|part| repairer.feed(part, &mut received));
            received
        };
        let whole = repaired(sent.len());
        assert!(whole.ends_with(&frame(3, b"body")) && whole.len() > sent.len());
        (1..sent.len()).for_each(|cut| assert_eq!(repaired(cut), whole));
    }
}
