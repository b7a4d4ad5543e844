//! Measures packing and assembling a directory: `measure DIR BLOCK_SIZE LEVEL OUT [THREADS]`.
//!
//! Each subdirectory of DIR is a package of its own. Prints sizes and times, and leaves the image at OUT.

use std::{
    error::Error,
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    time::Instant,
};

use rootfs::{Meta, Node, Pack, PackId, PackOptions, PackWriter, Tree, squashfs};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, block_size, level, out, rest @ ..] = arguments.as_slice() else {
        return Err("usage: measure DIR BLOCK_SIZE LEVEL OUT [THREADS]".into());
    };
    let options = PackOptions { block_size: block_size.parse()?, level: level.parse()? };
    let threads = rest.first().map_or(Ok(2), |threads| threads.parse())?;
    let mut tree = Tree::new();
    let mut packs = Vec::new();
    let mut input = 0;
    let mut packages: Vec<_> =
        fs::read_dir(root)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    packages.sort();
    for package in &packages {
        let pack_path = Path::new(out).with_extension(format!("{}.pack", packs.len()));
        let mut writer = PackWriter::create(&pack_path, options)?;
        let mut files = Vec::new();
        pack_directory(package, package, &mut writer, &mut files)?;
        let (_, summary) = writer.finish(b"")?;
        input += summary.input_bytes;
        let pack = Pack::open(&pack_path)?;
        for (path, mut node, file) in files {
            if let (Some(file), Node::File { content, .. }) = (file, &mut node) {
                *content = pack.content(PackId::new(packs.len() as u32), file).ok_or("no such file")?;
            }
            if let Err(error) = tree.insert_with_parents(&path, node) {
                eprintln!("{error}");
            }
        }
        packs.push(pack);
    }
    let packing = processor_time()?;
    let image = File::create(out)?;
    let start = Instant::now();
    let image_options = squashfs::Options { block_size: options.block_size, mtime: 0, level: options.level, threads };
    let summary = squashfs::write_image(&tree, &packs, &image, &image_options)?;
    let assembling = start.elapsed().as_secs_f64();
    let assembling_processor = processor_time()? - packing;
    let rate = input as f64 / 1e6 / packing;
    println!(
        "block {block_size} level {level}: {} bytes, {} fragments, packing {packing:.2} s of processor ({rate:.0} MB/s), \
         assembling {assembling:.3} s, {assembling_processor:.2} s of processor",
        summary.bytes_used, summary.fragments
    );
    Ok(())
}

/// The processor time of this process in seconds, as Linux counts it in hundredths.
fn processor_time() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Ok(fields.map(str::parse::<f64>).sum::<Result<f64, _>>()? / 100.0)
}

type Files = Vec<(Vec<u8>, Node, Option<rootfs::FileId>)>;

fn pack_directory(
    root: &Path,
    directory: &Path,
    writer: &mut PackWriter<std::io::BufWriter<File>>,
    files: &mut Files,
) -> Result<(), Box<dyn Error>> {
    let mut paths: Vec<_> =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        let metadata = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root)?.as_os_str().as_bytes().to_vec();
        let meta =
            Meta { mode: metadata.mode() as u16 & 0o7777, uid: metadata.uid(), gid: metadata.gid(), ..Meta::default() };
        if metadata.is_dir() {
            files.push((name, Node::Directory(rootfs::Directory::new(meta)), None));
            pack_directory(root, &path, writer, files)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path)?.as_os_str().as_bytes().to_vec();
            files.push((name, Node::Symlink { meta, target }, None));
        } else {
            let store = [&b".xz"[..], b".zst", b".gz"].iter().any(|end| name.ends_with(end));
            let mut file = File::open(&path)?;
            let id = if store {
                writer.add_stored(&mut file, metadata.len())
            } else {
                writer.add(&mut file, metadata.len())
            }?;
            files.push((name, Node::File { meta, content: rootfs::Content::Inline([].into()) }, Some(id)));
        }
    }
    Ok(())
}
