// fold_colors: colours to pix tokens in window order. One thread a token; neighbours write side by side.
// rgb uint8 [H, W, 3], layout int32 [2]: log2 of the fold factor, w -> tokens int32 [N, P]
// H, W  size    w  window side    P  w * w    N  windows    grid: offset in a window, window column, window row
const uint bits = layout[0], side = layout[1];
const uint3 place = thread_position_in_grid;
const uint left = place.y * side, top = place.z * side;
const uint columns = min(side, uint(rgb_shape[1]) - left);
const uint rows = min(side, uint(rgb_shape[0]) - top);
const uint shift = 8 - bits;
uint token = 1u << (3 * shift);  // padding, K
if (place.x < rows * columns) {  // valid pixels come first, so a ragged window's rows are shorter
  auto pixel = rgb + 3 * ((top + place.x / columns) * uint(rgb_shape[1]) + left + place.x % columns);
  token = uint(pixel[2]) >> bits;
  token = (token << shift) | (uint(pixel[1]) >> bits);
  token = (token << shift) | (uint(pixel[0]) >> bits);
}
tokens[(place.z * threads_per_grid.y + place.y) * threads_per_grid.x + place.x] = int(token);
