/** Character references of HTML, as captions have them. */

/** Names of the code points from 160 on. Source: HTML 4.01, sec. 24.2, the references of ISO 8859-1. */
const LATIN_1 =
  'nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn sup2 sup3 acute micro ' +
  'para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc Atilde Auml Aring AElig Ccedil ' +
  'Egrave Eacute Ecirc Euml Igrave Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml times Oslash Ugrave ' +
  'Uacute Ucirc Uuml Yacute THORN szlig agrave aacute acirc atilde auml aring aelig ccedil egrave eacute ecirc euml ' +
  'igrave iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave uacute ucirc uuml yacute ' +
  'thorn yuml';

const ENTITIES: ReadonlyMap<string, string> = new Map([
  ...LATIN_1.split(' ').map((name, i) => [name, String.fromCodePoint(160 + i)] as const),
  // What people put into captions of those that are not of ISO 8859-1. Source: HTML 4.01, sec. 24.4.
  ...Object.entries({
    ...{ amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", OElig: 'Œ', oelig: 'œ', Scaron: 'Š' },
    ...{ scaron: 'š', Yuml: 'Ÿ', ensp: ' ', emsp: ' ', thinsp: ' ', ndash: '–', mdash: '—' },
    ...{ lsquo: '‘', rsquo: '’', sbquo: '‚', ldquo: '“', rdquo: '”', bdquo: '„', bull: '•' },
    ...{ hellip: '…', prime: '′', Prime: '″', lsaquo: '‹', rsaquo: '›', euro: '€', trade: '™' },
    // They join, part or turn what is around them, and are no words.
    ...{ zwnj: '', zwj: '', lrm: '', rlm: '', shy: '' },
  }),
]);

const REFERENCE = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([A-Za-z][A-Za-z\d]*));/g;

/** Text with its references decoded, each once; a name that is not known stays, a number that is no character goes. */
export function decodeEntities(text: string): string {
  return text.replace(REFERENCE, (entity, decimal?: string, hexadecimal?: string, name?: string) =>
    name === undefined
      ? characterOf(decimal === undefined ? parseInt(hexadecimal!, 16) : Number(decimal))
      : (ENTITIES.get(name) ?? entity),
  );
}

function characterOf(codePoint: number): string {
  const isSurrogate = codePoint >= 0xd800 && codePoint <= 0xdfff;
  return isSurrogate || codePoint > 0x10ffff ? '' : String.fromCodePoint(codePoint);
}
