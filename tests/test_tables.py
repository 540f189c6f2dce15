"""CSV and TSV: with a line of names and without, every delimiter, quotes, and labels with commas of their own."""

import pytest
from source_files import BLUE, RED, REFERENCE, png, refused, shown, write

from mlx_pixword.data.sources import open_source


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "img/b.png", png("blue"))
    return tmp_path


def read(folder, content, name="labels.csv"):
    source = open_source(write(folder / name, content))
    documents = [shown(source.parts(n)) for n in range(len(source))]
    assert list(source.texts()) == [part for document in documents for part in document if isinstance(part, str)]
    return documents


@pytest.mark.parametrize(
    "name, content",
    [
        ("l.csv", 'filename,words\na.png,"one, x"\nimg/b.png,two\n'),
        ("l.csv", '\ufeffImage;Caption\r\na.png;"one, x"\r\n\r\nimg/b.png;two'),
        ("l.csv", "a.png,one, x\nimg/b.png,two\n"),  # no names, and no quotes where they were needed
        ("l.csv", "filename,words\na.png,one, x\nimg/b.png,two\n"),
        ("l.csv", "id,file_name,text\n1,a.png,one, x\n2,img/b.png,two\n"),
        ("l.csv", "file_name|description\na.png|one, x\nimg/b.png|two\n"),
        ("l.csv", "one; x,a.png\ntwo,img/b.png\n".replace("one; x", '"one, x"')),
        ("l.csv", "sep=;\r\nfile_name;text\r\na.png;one, x\r\nimg/b.png;two\r\n"),
        ("l.csv", "image_name| comment_number| comment\na.png| 0| one, x\nimg/b.png| 0| two\n"),
        ("l.csv", "img,transcript\na.png,one, x\nimg/b.png,two\n"),
        ("l.csv", 'a.png, "one, x"\nimg/b.png, "two"\n'),
        ("l.csv", "file_name;text\r\na.png;one, x\r\nimg/b.png;two\r\n".encode("utf-16")),
        ("l.tsv", "\ufefffile_name\ttext\na.png\tone, x\nimg/b.png\ttwo\n".encode("utf-16-be")),
        ("l.tsv", "file name\ttext\na.png\tone, x\nimg/b.png\ttwo\n"),
        ("l.tsv", 'a.png\t"one, x"\nimg/b.png\ttwo\n'),
    ],
)
def test_tables(folder, name, content):
    assert read(folder, content, name) == [[RED, "one, x"], [BLUE, "two"]]


def test_line_breaks_and_quotes_inside_cells(folder):
    content = 'file_name,text\na.png,"two\nlines, ""quoted"""\nimg/b.png,é\n'
    assert read(folder, content) == [[RED, 'two\nlines, "quoted"'], [BLUE, "é"]]


def test_a_quote_in_a_tsv_is_a_character(folder):
    assert read(folder, 'a.png\t"open\nimg/b.png\t5" wide\n', "l.tsv") == [[RED, '"open'], [BLUE, '5" wide']]


def test_rows_without_text_or_image(folder):
    content = "image,text\na.png,\n,only text " + REFERENCE.format("a.png") + "\n"
    assert read(folder, content) == [[RED], ["only text ", RED]]


def test_spans_hold_in_any_order(folder):
    source = open_source(write(folder / "l.csv", "image,text\n" + "".join(f'a.png,"{n}\n"\n' for n in range(30))))
    assert [source.parts(n)[1] for n in (29, 0, 17)] == ["29\n", "0\n", "17\n"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("picture,text\na.png,one\n", "line 2: the key 'picture' looks like an image"),
        ("image,text\na.png,one\na.png\n", "line 3: expected"),
        ("image,text,id\na.png,one,2,3\n", "line 2: 4 cells in 3 columns"),
        ("a.png\nb.png\n", "line 1: no text beside the image 'a.png'"),
        ("\n\n", "holds no documents"),
        ("image,text\n", "holds no documents"),
        (b"image,text\na.png,caf\xe9\n", "line 2: not valid UTF-8"),
        ('sep="\nimage,text\na.png,one\n', "line 2: 2 cells in 1 columns"),
        ("image,text\ra.png,one\r", "line 1: lines end with CR alone"),
        (b"\xff\xfea\0,\0\0\xd8", "not valid UTF-16; save it as UTF-8"),
        ('image,text\na.png,"' + "x" * 200_000, "line 2: field larger than field limit"),
        ("image,text," + "x" * 200_000, "line 1: field larger than field limit"),
        ('image,text\na.png,"open\nb.png,two\n', "line 2: unexpected end of data; quotes may be missing"),
        ('image,text\na.png,one\na.png,"open\nb.png,"two"\n', "line 3: ',' expected after '\"'; quotes may be"),
    ],
)
def test_malformed_tables(folder, content, message):
    refused(message, open_source, write(folder / "l.csv", content))
