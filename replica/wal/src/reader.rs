//! Reads single records of committed batches, from any thread.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::error::{IoFailure, ReadError};
use crate::format::{FRAME, Frame, segment_name};
use crate::{Disk, Location, WalId};

/// Reads committed records back. Only for locations whose batch is committed; any other reads as damaged.
pub struct Reader<D> {
    disk: Arc<D>,
    id: WalId,
}

impl<D: Disk> Reader<D> {
    pub(crate) fn new(disk: Arc<D>, id: WalId) -> Self {
        Reader { disk, id }
    }

    /// The payload at `location`, checked against its digest, which binds it to this place of this log.
    pub fn read(&self, location: Location) -> Result<Bytes, ReadError> {
        let name = segment_name(location.segment);
        let damaged = ReadError::Damaged { segment: location.segment, offset: location.offset };
        let Some(at) = location.offset.checked_sub(FRAME as u64) else { return Err(damaged) };
        let mut bytes = BytesMut::zeroed(FRAME + location.len as usize);
        self.disk.read_at(&name, at, &mut bytes).map_err(IoFailure::of("read", &name))?;
        let bytes = bytes.freeze();
        let frame = Frame::decode(bytes.first_chunk().expect("FRAME bytes at least, by the line above"));
        let payload = bytes.slice(FRAME..);
        if frame.covers(&self.id, location.segment, at, &payload) { Ok(payload) } else { Err(damaged) }
    }
}

impl<D> Clone for Reader<D> {
    fn clone(&self) -> Self {
        Reader { disk: Arc::clone(&self.disk), id: self.id }
    }
}
