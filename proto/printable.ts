/** Text from elsewhere as it may go to a terminal: without the control characters that could take it over. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, '\uFFFD');
}
