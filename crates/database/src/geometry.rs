//! The sizes that an ext4 superblock tells.
//!
//! Offsets are those of the kernel's `Documentation/filesystems/ext4/super.rst`.

/// Bytes of a block, as our file systems are made.
const BLOCK_LEN: u64 = 4096;
/// Where the superblock begins on its device.
const SUPERBLOCK_AT: usize = 1024;
const MAGIC: u64 = 0xef53;
/// `s_state`: errors were seen, or a change of the size was cut short.
const ERROR_FS: u64 = 2;
/// `s_feature_incompat`: descriptors are as long as `s_desc_size` says.
const INCOMPAT_64BIT: u64 = 0x80;
/// Blocks that resize2fs wants for data in a last group, or it leaves the group away.
const LAST_GROUP_MIN: u64 = 50;

/// What an ext4 file system says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Blocks of the file system.
    pub(crate) blocks: u64,
    /// Whether it says that it has errors.
    pub(crate) errors: bool,
    blocks_per_group: u64,
    /// Blocks of a group's inode table.
    inode_table: u64,
    /// Blocks of group descriptors, and those kept free after them.
    descriptors: u64,
    reserved: u64,
    descriptors_per_block: u64,
}

impl Geometry {
    /// Reads the first bytes of a device; none if they are no ext4 file system with blocks of 4 KiB.
    pub(crate) fn read(head: &[u8]) -> Option<Self> {
        let field = |at: usize, len: usize| {
            let bytes = head.get(SUPERBLOCK_AT + at..SUPERBLOCK_AT + at + len)?;
            Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        let blocks_per_group = field(0x20, 4)?;
        if field(0x38, 2)? != MAGIC || field(0x18, 4)? != 2 || blocks_per_group == 0 {
            return None;
        }
        let wide = field(0x60, 4)? & INCOMPAT_64BIT != 0;
        let descriptor_len = if wide { field(0xfe, 2)?.max(32) } else { 32 };
        let high = if wide { field(0x150, 4)? } else { 0 };
        let blocks = high << 32 | field(0x4, 4)?;
        let descriptors_per_block = (BLOCK_LEN / descriptor_len).max(1);
        Some(Self {
            blocks,
            errors: field(0x3a, 2)? & ERROR_FS != 0,
            blocks_per_group,
            inode_table: (field(0x28, 4)? * field(0x58, 2)?).div_ceil(BLOCK_LEN),
            descriptors: blocks.div_ceil(blocks_per_group).div_ceil(descriptors_per_block),
            reserved: field(0xce, 2)?,
            descriptors_per_block,
        })
    }

    /// How many blocks it can have on a device of `len` bytes without any block of data being moved: more descriptors
    /// than were kept free for would need that, and a move that is cut short is not made good. It is 1,024 times what the file
    /// system was made with.
    pub(crate) fn blocks_on(&self, len: u64) -> u64 {
        let descriptors = (self.descriptors + self.reserved).saturating_mul(self.descriptors_per_block);
        let most = descriptors.saturating_mul(self.blocks_per_group);
        let blocks = (len / BLOCK_LEN).min(most);
        // A last group that has no room for anything but itself is left away.
        let rest = blocks % self.blocks_per_group;
        let overhead = 3 + self.inode_table + self.descriptors + self.reserved + LAST_GROUP_MIN;
        let usable = if rest < overhead { blocks - rest } else { blocks };
        usable.max(self.blocks)
    }
}
