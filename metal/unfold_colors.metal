// unfold_colors: pix tokens in window order to the colours at the centres of their bins. One thread a pixel.
// tokens int32 [N, P], layout int32 [2]: log2 of the fold factor, w -> rgb uint8 [H, W, 3]
// H, W  size    w  window side    P  w * w    N  windows    grid: column and row of the pixel
const uint bits = layout[0], side = layout[1];
const uint2 pixel = thread_position_in_grid.xy;
const uint width = threads_per_grid.x;
const uint2 window = pixel / side, inside = pixel % side;
const uint columns = min(side, width - window.x * side);  // a ragged window's rows are shorter
const uint number = window.y * ((width + side - 1) / side) + window.x;
const uint token = uint(tokens[number * side * side + inside.y * columns + inside.x]);
const uint shift = 8 - bits, centre = ((1u << bits) - 1) / 2;
auto color = rgb + 3 * (pixel.y * width + pixel.x);
color[0] = uint8_t((token << bits) + centre);  // a level ends at bit 7: the cast drops the channels above
color[1] = uint8_t((token >> shift << bits) + centre);
color[2] = uint8_t((token >> (2 * shift) << bits) + centre);
