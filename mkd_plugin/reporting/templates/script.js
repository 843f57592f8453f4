const dialog = document.querySelector('dialog');
for (const button of document.querySelectorAll('.panels button, .pictures button')) {
  button.addEventListener('click', () => {
    dialog.querySelector('div').replaceChildren(button.querySelector('svg, img').cloneNode(true));
    dialog.showModal();
  });
}
dialog.querySelector('button').addEventListener('click', () => dialog.close());
dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });

const contents = document.querySelector('.contents details');
const narrow = matchMedia('(max-width: 60rem)');
contents.open = !narrow.matches;
narrow.addEventListener('change', () => { contents.open = !narrow.matches; });
contents.addEventListener('click', (event) => { if (narrow.matches && event.target.closest('a')) contents.open = false; });
